"""`twcli doctor`: versions, devices, threads and cache folders, to paste into a bug report.

Nothing in it identifies a person: folders are shown from the home folder on, or by their last
component, and of variables that may hold a secret only that they are set.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from twcli import __version__

DISTRIBUTION = "twcli-cvae"
# read by torch, its kernels, the hub's client or HDF5, and a reason for a run to differ
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "HDF5_USE_FILE_LOCKING",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
)
DEVELOPERS = ("bench", "dev", "docs")  # extras that no command needs
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY")
GIB = 2**30


def examine() -> dict[str, Any]:
    """Plain JSON types: `twcli`, `python`, `system`, `cpu`, `devices`, `packages`, `folders`,
    `environment`, and `problems`, a sentence each.
    """
    import torch

    packages, problems = _packages()
    devices = _devices()
    if not devices and shutil.which("nvidia-smi"):
        problems.append(
            f"nvidia-smi is there, but torch {torch.__version__} finds no GPU: install the CUDA "
            "build of torch, or a newer driver"
        )
    return {
        "twcli": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {
            "name": _cpu_name(),
            "cores": _cores(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "memory_gib": _memory_gib(),
        },
        "devices": devices,
        "packages": packages,
        "folders": _folders(),
        "environment": {
            **{name: os.environ[name] for name in VARIABLES if name in os.environ},
            **{name: "set" for name in SECRETS if os.environ.get(name)},
        },
        "problems": problems,
    }


def render(found: dict[str, Any]) -> str:
    """The report as lines of Markdown."""
    cpu = found["cpu"]
    if cpu["memory_gib"]:
        memory = f", {cpu['memory_gib']} GiB"
    else:
        memory = ""
    devices = []
    for device in found["devices"]:
        shown = f"{device['kind']}: {device['name']}"
        if device.get("detail"):
            shown += f", {device['memory_gib']} GiB, {device['detail']}"
        devices.append(shown)
    folders = [
        f"{name}: {folder['path']}, {folder['state']}" for name, folder in found["folders"].items()
    ]
    lines = [
        f"- twcli {found['twcli']}, Python {found['python']}, {found['system']}",
        f"- CPU: {cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads in torch, "
        f"{cpu['capability']}{memory}",
        *(f"- {device}" for device in devices or ["no GPU: --device auto takes the CPU"]),
        "- packages: "
        + ", ".join(
            f"{name} {version or 'missing'}" for name, version in found["packages"].items()
        ),
        *(f"- {folder}" for folder in folders),
        "- environment: "
        + (", ".join(f"{name}={value}" for name, value in found["environment"].items()) or "none"),
        *(f"- PROBLEM: {problem}" for problem in found["problems"]),
    ]
    return "\n".join(lines)


def _packages() -> tuple[dict[str, str | None], list[str]]:
    """Versions of what the installed distribution asks for, with the extras that a user installs;
    what it needs and does not have, or has too old.
    """
    from packaging.requirements import Requirement

    packages: dict[str, str | None] = {}
    problems: list[str] = []
    try:
        described = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return packages, [f"{DISTRIBUTION} is not installed: pip install ."]
    extras = [e for e in described.get_all("Provides-Extra", []) if e not in DEVELOPERS]
    for requirement in map(Requirement, described.get_all("Requires-Dist", [])):
        marker = requirement.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        packages[requirement.name] = version
        if version is None and needed:
            problems.append(f"{requirement.name} is missing: pip install '{requirement}'")
        elif version is not None and not requirement.specifier.contains(version, prereleases=True):
            problems.append(
                f"{requirement.name} {version} is not {requirement.specifier}: "
                f"pip install '{requirement.name}{requirement.specifier}'"
            )
    return packages, list(dict.fromkeys(problems))


def _devices() -> list[dict[str, Any]]:
    """GPUs that torch can use."""
    import torch

    devices: list[dict[str, Any]] = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(number)
        capability = f"compute capability {card.major}.{card.minor}"
        devices.append(
            {
                "kind": f"cuda:{number}",
                "name": card.name,
                "memory_gib": round(card.total_memory / GIB, 1),
                "detail": f"{capability}, CUDA {torch.version.cuda}",
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "name": platform.machine()})
    return devices


def _folders() -> dict[str, dict[str, str]]:
    """The hub's cache and the folder for temporary files, with the space that is left."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = {}
    for name, place in (("hub cache", HF_HUB_CACHE), ("temporary files", tempfile.gettempdir())):
        folder = Path(place)
        there = next((f for f in (folder, *folder.parents) if f.exists()), None)
        if there:
            free = f"{shutil.disk_usage(there).free / GIB:.1f} GiB free"
        else:
            free = "unreachable"
        state = free if folder.exists() else f"not there yet, {free}"
        if there and not os.access(there, os.W_OK):
            state = f"not writable, {state}"
        folders[name] = {"path": public_path(folder), "state": state}
    return folders


def public_path(path: Path) -> str:
    """A path that can be published: from the home folder on, as `~/...`; elsewhere the last
    component alone, as `.../name`.
    """
    try:
        below = path.absolute().relative_to(Path.home())
        return str(Path("~") / below)
    except (ValueError, RuntimeError):
        return f".../{path.name}"


def _cores() -> int:
    """Cores that this process may use, which a container or a scheduler may limit; all of the
    machine where the system does not say.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """As the system calls it; on Linux by the first core's model name."""
    described = ""
    with suppress(OSError):
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    named = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    if named:
        return named[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    """The machine's memory, None where the system does not say."""
    if sys.platform == "win32" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    pages = os.sysconf("SC_PHYS_PAGES")
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return round(pages * page_bytes / GIB, 1)
