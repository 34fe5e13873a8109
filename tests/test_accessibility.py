"""Every page, light and dark, wide and narrow: axe finds nothing serious, and no page has to be scrolled sideways."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Server, needs_browser
from story import tell

AXE = Path(os.environ.get("FORGE_TEST_AXE") or ROOT / ".venv/axe/node_modules/axe-core/axe.min.js")
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"  # of the version that the Makefile installs
pytestmark = [
    needs_browser,
    pytest.mark.skipif(
        not AXE.exists() and not os.environ.get("FORGE_TEST_REQUIRE_AXE"),
        reason="axe-core is not installed (npm is missing): accessibility is not tested",
    ),
]
LOOK = """() => axe.run({ resultTypes: ["violations"] }).then((found) => found.violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 150)).slice(0, 3).join(" | ")}`))"""


@pytest.fixture(scope="module")
def day(shared: Server) -> tuple[Server, dict[str, str]]:
    return shared, tell(shared)


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_violation(day: tuple[Server, dict[str, str]], browser: Any, scheme: str, width: int) -> None:
    source = AXE.read_bytes()
    assert hashlib.sha256(source).hexdigest() == AXE_SHA256
    server, pages = day
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    found = {}
    for name, path in pages.items():
        page.goto(server.url + path)
        if path.startswith("/jobs/"):
            page.wait_for_selector("#log .ansi-green-fg")
        page.evaluate(source.decode())
        found[name] = page.evaluate(LOOK)
        if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            found[name].append("it has to be scrolled sideways")
    context.close()
    assert {name: said for name, said in found.items() if said} == {}
