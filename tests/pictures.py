#!/usr/bin/env python3
"""Pictures of every page, to look at: light and dark, wide and narrow; with ``--readme`` the two that the README shows.

tests/pictures.py FOLDER
tests/pictures.py --readme
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from conftest import CHROMIUM, CHROMIUM_ARGS, Server, end
from playwright.sync_api import Browser, sync_playwright
from story import tell

README = Path(__file__).parent / "pictures"
IN_README = ("repo", "job-failed")


def take(browser: Browser, server: Server, pages: dict[str, str], folder: Path, scheme: str, width: int, whole: bool) -> None:
    """Write a picture of each page to `folder`."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    for name, path in pages.items():
        page.goto(server.url + path)
        if path.startswith("/jobs/"):
            page.wait_for_selector("#log .ansi-green-fg")
        page.screenshot(path=folder / f"{name}-{scheme}-{width}.png", full_page=whole)
    context.close()


def main() -> int:
    """Tell the story to a server of its own, and look at it."""
    readme = sys.argv[1:] == ["--readme"]
    folder = README if readme else Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        shown = Path(place).parent / "forge"  # a name to be read on the pages
        shown.symlink_to(place)
        server = Server(shown / "data", {"FORGE_MAX_JOBS": "2"}).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        try:
            pages = tell(server)
            if readme:
                pages = {name: pages[name] for name in IN_README}
            for scheme in ("light", "dark"):
                for width in (1280,) if readme else (1280, 360):
                    take(browser, server, pages, folder, scheme, width, whole=not readme)
        finally:
            browser.close()
            end(server)
            shown.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
