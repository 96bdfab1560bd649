"""The notebook runs from the first cell to the last, and shows what it says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent.parent / "examples" / "first_look.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_finds_three_styles_and_trains_a_latent_for_each():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=800, resources=place).execute()
    shown = [
        output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert len(pages) == 2 and all("<svg" in page for page in pages)
    chosen = eval(shown[-1]["text/plain"])  # a dict of texts
    styles = {answer.split()[0]: answer for answer in chosen.values()}
    assert {"well", "last"} < set(styles) and len(styles) == 3
