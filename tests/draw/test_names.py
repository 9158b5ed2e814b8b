"""Names of photos, layers and classes in figures, in any script."""

import pytest
import torch
from matplotlib import font_manager
from matplotlib.text import Text

from deformscope import draw
from deformscope.draw.text import drawable, families

CHINESE = "\u56fe\u7247"


def words(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def without_other_fonts(monkeypatch):
    """A machine that has only the fonts which matplotlib brings along."""
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    families.cache_clear()
    yield
    families.cache_clear()


def test_a_title_that_no_font_can_write_is_left_out(field, photo, without_other_fonts):
    for title, shown in (
        (f"{CHINESE}.jpg · packaged", "packaged"),
        (f"{CHINESE}.jpg", None),
        ("cat.jpg · packaged", "cat.jpg · packaged"),
        ("a\nb\udcff.jpg", "a b?.jpg"),
    ):
        found = words(draw.overview(field, photo, title=title))
        assert (shown in found) if shown else not any(CHINESE in text for text in found)
    draw.growth({CHINESE: field}, photo, title=CHINESE)


def test_names_of_layers_and_classes_that_no_font_can_write_are_told_otherwise(field, photo, without_other_fonts):
    from dataclasses import replace

    found = {"boxes": torch.tensor([[5.0, 5, 60, 60]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    figure = draw.figure2(replace(field, name=CHINESE), photo, detection=found, class_names=[CHINESE])
    shown = words(figure)
    assert "0 0.90" in shown
    assert any(text.startswith("deformable convolution") for text in shown)
    assert not any(set(CHINESE) & set(text) for text in shown)


def test_a_font_that_has_the_letters_is_found(without_other_fonts, field, photo):
    # A sign that another of matplotlib's fonts has, but not its usual one.
    usual = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    other = font_manager.get_font(font_manager.findfont("STIXGeneral"))
    letter = chr(next(code for code in other.get_charmap() if not usual.get_char_index(code) and code > 0x2000))
    assert drawable(f"a{letter}b") == f"a{letter}b"
    assert families(f"a{letter}b")[0] == "DejaVu Sans" and len(families(f"a{letter}b")) > 1
    title = next(text for text in draw.overview(field, photo, title=letter).findobj(Text) if text.get_text() == letter)
    assert title.get_fontfamily() == list(families(letter))
    assert drawable(CHINESE) == "" and families(CHINESE) == ()


def test_a_title_in_several_fonts_has_one_weight_that_all_have(field, photo, monkeypatch):
    """Fonts of other letters rarely have a bold one, of which matplotlib warns on stderr."""
    title = draw.overview(field, photo, title="cat.png").texts[0]
    assert (title.get_text(), title.get_weight()) == ("cat.png", "bold")
    monkeypatch.setattr("deformscope.draw.sheet.families", lambda text: ("DejaVu Sans", "DejaVu Serif"))
    assert draw.overview(field, photo, title="cat.png").texts[0].get_weight() == "normal"
