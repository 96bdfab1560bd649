"""For the site: a link from docs/ to a file outside it becomes the file's path, since the site has
only docs/.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown, page, **_others):
    folder = Path(page.file.abs_src_path).parent

    def shown(match):
        target = (folder / match[2]).resolve()
        if not target.is_file() or target.is_relative_to(ROOT / "docs"):
            return match[0]
        return f"{match[1]} (`{target.relative_to(ROOT)}`)"

    return re.sub(r"\[([^\]]+)\]\((?!https?:)([^)#\s]+)\)", shown, markdown)
