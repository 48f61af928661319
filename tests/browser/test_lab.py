"""What a student does: open a notebook in JupyterLab, run it all, move a slider with the keyboard, and see it
answer."""

import json
import re
import time

import nbformat
import pytest

RUN_LIMIT = 300  # s; notebooks take half a minute, a busy machine may take longer


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    yield page
    page.close()


def open_and_run_all(page, lab, name):
    """As a reader does, but on a copy without the stored outputs, so that what is seen comes from this run, and with
    everything unfolded."""
    path = lab["notebooks"] / name
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("jupyter", None)
    nbformat.write(notebook, path)
    open_notebook(page, lab, name)
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
    while not page.evaluate(
        f"{prompts}.some(text => /[0-9*]/.test(text))"
    ):  # a command before the page knows its kernel is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
        page.wait_for_timeout(2000)
    wait_until(page, f"{prompts}.every(text => /[0-9]/.test(text))", RUN_LIMIT)


def open_notebook(page, lab, name):
    """Until its kernel waits for a command."""
    page.goto(f"{lab['url']}/lab/tree/{name}?token={lab['token']}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    kernel = f"fetch('/api/kernels?token={lab['token']}').then(answer => answer.json())"
    wait_until(
        page, f"{kernel}.then(all => all.some(one => one.execution_state === 'idle' && one.connections > 0))", 60
    )


def wait_until(page, condition, timeout=20):
    """Ask the page again and again; Playwright's own waiting needs animation frames, which a headless page may not
    get."""
    end = time.monotonic() + timeout
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {timeout} s: {condition}"
        page.wait_for_timeout(100)


def readout(page, index=0):
    return page.locator(".mbls-readout").nth(index)


def picture(page, index=0):
    return page.locator(".widget-image").nth(index)


def assert_moves(page, label, index, key="ArrowRight"):
    """Focus the slider of that label, press a key, and see readout and picture change."""
    slider = page.locator(".widget-slider", has_text=label).first
    slider.scroll_into_view_if_needed()
    before = readout(page, index).inner_text(), picture(page, index).get_attribute("src")
    picture(page, index).evaluate("image => image.dataset.seen = 'yes'")
    handle = slider.locator(".noUi-handle")
    handle.focus()
    page.keyboard.press(key)
    wait_until(page, f"document.querySelectorAll('.mbls-readout')[{index}].innerText !== {json.dumps(before[0])}")
    wait_until(page, f"document.querySelectorAll('.widget-image')[{index}].src !== {json.dumps(before[1])}")
    assert picture(page, index).evaluate("image => image.complete && image.naturalWidth > 600")
    # The same element with a new picture in it: nothing is taken away and put back, so nothing flickers.
    assert picture(page, index).get_attribute("data-seen") == "yes"


def assert_clean(page):
    assert page.problems == []
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert page.get_by_text("Error displaying widget").count() == 0


@pytest.mark.slow  # trains a network in a kernel behind a browser
@pytest.mark.parametrize(
    ("name", "moves"),
    [
        (
            "01_what_is_calibration.ipynb",
            [
                ("voxels in the sample", 0),
                ("bins", 0),
                ("temperature", 0),
                ("reach of an error", 1),
                ("patients in the test set", 2),
            ],
        ),
        ("03_logit_distances.ipynb", [("logit of LV", 0), ("logit of background", 0)]),
        (
            "05_margin_explorer.ipynb",
            [("margin m", 0), ("weight λ", 0), ("slice", 1), ("networks trained with margin m", 2)],
        ),
    ],
)
def test_notebook_runs_and_its_sliders_answer_to_the_keyboard(page, lab, name, moves):
    open_and_run_all(page, lab, name)
    for label, index in moves:
        assert_moves(page, label, index)
    assert_clean(page)


@pytest.mark.slow  # needs a kernel behind a browser
def test_last_position_of_a_fast_drag_wins(page, lab):
    """Sixty positions faster than they can be drawn: the readout ends at the last, and not sixty pictures later."""
    (lab["notebooks"] / "drag.ipynb").write_text(DRAG)
    open_and_run_all(page, lab, "drag.ipynb")
    handle = page.locator(".widget-slider", has_text="margin m").locator(".noUi-handle")
    handle.focus()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    # 0 + 60 steps of 0.5 stop at the end of the scale, 10.
    wait_until(page, "document.querySelector('.mbls-readout').innerText.includes('ends at d = 10.00')")
    # Run a second time, the cell shows one explorer, not two.
    page.locator(".jp-CodeCell .jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    wait_until(page, "document.querySelector('.jp-CodeCell .jp-InputPrompt').textContent.includes('2')")
    wait_until(page, "document.querySelectorAll('.mbls-readout').length === 1")
    assert page.locator(".widget-image").count() == 1
    assert_clean(page)


@pytest.mark.slow  # needs a kernel behind a browser
def test_predictions_from_the_question_to_the_readers_diagram(page, lab):
    """By hand: a choice, how sure, the button; the next cell compares and locks; in the end stands the diagram."""
    asked = [f'ask("9.{n}", "Question {n}?", options=["yes", "no"])' for n in range(5)]
    told = [f'reveal("9.{n}", "yes", "Because.")' for n in range(5)]
    sources = ["from mbls.course import ask, my_predictions, reveal", *asked, *told, "my_predictions()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, lab["notebooks"] / "predictions.ipynb")
    open_notebook(page, lab, "predictions.ipynb")
    page.locator(".jp-CodeCell .jp-InputArea-editor").first.click()
    for _ in range(6):
        page.keyboard.press("Shift+Enter")
    wait_until(page, "document.querySelectorAll('.widget-radio').length === 5", 60)
    assert page.locator(".widget-readout", has_text="50").count() == 5  # a blind guess of two
    for n in range(5):
        page.locator(".widget-radio").nth(n).get_by_text("yes" if n else "no", exact=True).click()
        page.locator(".widget-slider .noUi-handle").nth(n).focus()
        page.keyboard.press("End")
        page.get_by_role("button", name="Store my prediction").nth(n).click()
        wait_until(page, f"document.querySelectorAll('.mbls-prediction')[{n}].innerText.startsWith('Stored: ')")
    kept = json.loads((lab["notebooks"] / "my_predictions.json").read_text())
    assert [kept[f"9.{n}"]["answer"] for n in range(5)] == ["no", "yes", "yes", "yes", "yes"]
    assert [kept[f"9.{n}"]["confidence"] for n in range(5)] == [1.0] * 5
    page.locator(".jp-CodeCell .jp-InputArea-editor").nth(6).click()
    for _ in range(6):
        page.keyboard.press("Shift+Enter")
    wait_until(page, "document.querySelectorAll('.mbls-compared').length === 5", 60)
    assert "You said no and were 100 % sure: not this time." in page.locator(".mbls-compared").first.inner_text()
    assert page.get_by_role("button", name="Store my prediction").first.is_disabled()
    wait_until(page, "document.body.innerText.includes('You were overconfident by 20 points')", 60)
    assert_clean(page)


DRAG = """{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "metadata": {}, "outputs": [],
 "source": "from mbls.course.explorers import VoxelExplorer\\nVoxelExplorer(margin=0)"}],
 "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
 "nbformat": 4, "nbformat_minor": 5}"""
