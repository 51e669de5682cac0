"""A build hook of hatchling: make the man pages, which a wheel installs under ``share/man``."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface[Any]):
    """Adds the man pages to a wheel, but not to an editable installation."""

    PLUGIN_NAME = "man-pages"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pages, and name them and their places in the wheel."""
        if version == "editable":
            return
        self._directory = TemporaryDirectory(prefix="scache-man-")
        root = Path(self.root)
        sys.path[:0] = [str(root / "tools"), str(root)]
        from harness.man_pages import release_date, write_pages

        changelog = root.joinpath("CHANGELOG.md").read_text(encoding="utf-8")
        for page in write_pages(Path(self._directory.name), release_date(changelog)):
            build_data["shared_data"][str(page)] = f"share/man/man{page.suffix[1:]}/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the files that were written."""
        if version != "editable":
            self._directory.cleanup()
