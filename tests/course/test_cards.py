"""The cards of the losses: facts against the losses themselves."""

import numpy as np
import pytest

from mbls.course.cards import CARDS, loss_cards, row_after_training
from mbls.losses import LOSSES, build_loss, parse_loss

TRUTH = row_after_training("ce")


def test_every_loss_of_the_tables_is_on_a_card():
    specs = [spec.split(" ")[0] for card in CARDS.values() for spec in card.specs]
    assert {parse_loss(spec)[0] for spec in specs} == set(LOSSES)
    for card in CARDS.values():
        build_loss(card.drawn, 2)


def test_a_card_shows_formula_text_and_pictures_with_alt_text():
    html = loss_cards("svls", "mbls")._repr_mimebundle_()["text/html"]
    assert html.count("<img") == 3
    assert "what SVLS, σ = 1 makes of it" in html
    assert rf"\({CARDS['mbls'].formula}\)" in html
    assert "$" not in html
    with pytest.raises(ValueError, match="names: got 'hinge', expected some of ce"):
        loss_cards("hinge")


def test_pictures_show_what_the_cards_say():
    middle, known = slice(10, 15), (TRUTH > 0.02) & (TRUTH < 0.98)
    mbls = row_after_training("mbls:margin=2")
    np.testing.assert_allclose(mbls[middle], TRUTH[middle], atol=0.005)
    assert mbls[-1] == pytest.approx(0.95, abs=0.005)
    np.testing.assert_allclose(row_after_training("ls:alpha=0.1"), 0.9 * TRUTH + 0.05, atol=0.005)
    np.testing.assert_allclose(row_after_training("ce_hard_l1ace"), TRUTH, atol=0.02)
    away = {spec: np.abs(row_after_training(spec) - 0.5)[known] for spec in ("ce_dice", "fl:gamma=3", "ecp:alpha=0.1")}
    sure = np.abs(TRUTH - 0.5)[known]
    assert (away["ce_dice"] >= sure - 0.01).all()
    assert away["ce_dice"].max() > sure.max()
    assert (away["fl:gamma=3"] < 0.8 * sure + 0.01).all()
    assert (away["ecp:alpha=0.1"] <= sure + 0.01).all()
    wider = row_after_training("svls:sigma=2") - TRUTH
    assert wider[:12].max() > 0.005 > wider[13:].max()
    assert row_after_training("nacl:alpha=0.1")[-1] < 0.96
