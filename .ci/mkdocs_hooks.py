"""What the site needs beside the pages: methods in the menu, pictures of the records, all public names.

Pages link to pictures as a reader of the repository sees them, `../experiments/records/...`; that is outside
of `docs/`, so the build copies each of them into the site and points the link there.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import pruneopt
import pruneopt.parts

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [f"{module.__name__}.{name}" for module in (pruneopt, pruneopt.parts) for name in module.__all__]
log = logging.getLogger("mkdocs.hooks.reference")  # `--strict` counts the warnings below `mkdocs`
RECORDS = "experiments/records"
_PICTURE = re.compile(rf"(!\[[^\]]*\]\()(?:\.\./)+({RECORDS}/[^)\s]+)(\))")


def on_config(config: Any) -> Any:
    """Append one entry per page of `docs/methods` to the section that holds `methods.md`."""
    pages = sorted(Path(config["docs_dir"], "methods").glob("*.md"))
    section = next(part["Methods"] for part in config["nav"] if "Methods" in part)
    section += [{page.stem: f"methods/{page.name}"} for page in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures under `experiments/records`."""
    for picture in sorted((ROOT / RECORDS).rglob("*.png")):
        name = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to record pictures at their copies; one that does not exist stays a broken link.

    The reference must name everything that is public; each name that it lacks is a warning.
    """
    if page.file.src_uri == "reference.md":
        for name in PUBLIC:
            if f"::: {name}\n" not in markdown:
                log.warning(f"reference.md lacks a line '::: {name}'")
    up = "../" * page.file.src_uri.count("/")
    return _PICTURE.sub(lambda link: f"{link[1]}{up}{link[2]}{link[3]}", markdown)
