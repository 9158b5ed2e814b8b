"""What Python packs into the page, without a browser."""

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from planted import SIZE, planted, planted_fields, planted_segments

import deformscope.explorer
from deformscope.errors import DeformscopeError
from deformscope.explorer import document, page, write
from deformscope.explorer.payload import FARTHEST, MISSING, layer_record, packed_steps, quantise, script_text

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


def unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).astype(np.uint32)
    words = (raw[: len(raw) // 2] + 256 * raw[len(raw) // 2 :]).reshape(shape)
    return (np.cumsum(words, axis=-1) % 65536).astype(np.uint16).view(np.int16)


@given(st.floats(1e-6, 599), st.integers(0, 10_000))
@settings(deadline=None, max_examples=80)
def test_no_offset_is_a_hundredth_of_a_cell_beside_its_value(largest, seed):
    offset = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    offset = offset / offset.abs().max() * largest
    error = np.abs(quantise(offset).offsets() - offset.numpy()).max()
    assert error < 1 / 100
    assert error <= 1 / 512 + 1e-12 or largest > 127
    assert error <= largest / 512 * 1.001, "a field of tiny offsets keeps its shape"


def test_zero_offsets_stay_exactly_zero():
    assert (quantise(torch.zeros(2, 3)).offsets() == 0).all()


def test_offsets_that_are_no_numbers_are_told_apart_and_those_too_far_are_cut_and_counted():
    found = quantise(torch.tensor([[float("nan"), 1.0, -1e9], [float("inf"), -2.5, 3e4]]))
    assert (found.steps == MISSING).tolist() == [[True, False, False], [True, False, False]]
    assert found.cut == 2
    assert np.abs(found.offsets()[0, 1:] - [1.0, -FARTHEST]).max() < 1 / 100


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None)
def test_packed_steps_come_back_as_they_were(planes, w, seed):
    steps = np.random.default_rng(seed).integers(-32768, 32767, (planes, 3, w), dtype=np.int16)
    assert (unpacked(packed_steps(steps), steps.shape) == steps).all()


def test_a_layer_is_packed_with_planes_of_y_before_x():
    field = planted_fields()["body.low"]
    record = layer_record(field)
    steps = unpacked(record["offset"], (2, 6, 2, 17, 34))
    expected = field.offset[0].movedim(-1, 2).numpy()
    assert np.abs(steps * record["step"] - expected).max() < 1e-6
    assert (record["kernel"], record["stride"], record["groups"]) == ((3, 2), (2, 1), 2)


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "<!--<script>", "a\u2028b & 'c' \"d\"", "\udcff.jpg"]
)
def test_json_between_script_tags_neither_ends_them_nor_changes(name):
    text = script_text({"name": name})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["name"] == name.encode("utf-8", "replace").decode()


def test_the_policy_allows_exactly_the_pages_own_style_and_script():
    text = page([planted()], ["photo.png"])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    for tag in ("style", 'script type="module"'):
        inside = re.search(rf"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_the_page_names_no_address_but_the_svg_namespace():
    text = page([planted()], ["photo.png"])
    assert set(re.findall(r"\w+://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:script|img|iframe|audio|video|source|object|embed)\b[^>]*\bsrc=", text)
    assert re.findall(r"<link\b[^>]*>", text) == ['<link rel="icon" href="data:,">']


def test_all_modules_are_bundled_and_none_uses_anothers_name():
    folder = Path(document.__file__).parent
    assert {file.stem for file in folder.glob("*.js")} == {*document.MODULES, "page"}
    bundle = document.bundle()
    assert not re.search(r"^(?:import|export)\b", bundle, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function\*?|class|const|let) (\w+)", bundle, re.MULTILINE)
    assert len(names) > 80 and len(set(names)) == len(names)


def test_modules_import_only_those_bundled_before_them():
    folder = Path(document.__file__).parent
    order = [*document.MODULES, "page"]
    for number, name in enumerate(order):
        text = (folder / f"{name}.js").read_text(encoding="utf-8")
        for names, module in re.findall(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', text, re.MULTILINE):
            assert module in order[:number], (name, module)
            source = (folder / f"{module}.js").read_text(encoding="utf-8")
            for one in names.split(","):
                word = one.strip()
                exported = rf"^export (?:async )?(?:function\*?|class|const) {word}\b"
                assert re.search(exported, source, re.MULTILINE), word
                assert len(re.findall(rf"\b{word}\b", text)) > 1, f"{name}.js imports {word} and does not use it"


def test_names_with_markup_or_braces_are_text():
    text = page([planted()], [HOSTILE + "{{script}}{{payload}}"])
    assert "<img" not in text.split("<style>")[0]
    assert text.count('<script type="module">') == 1
    assert text.count("{{script}}") == 3, "in the title, the index and the photo: filled in none"


def test_thirteen_layers_of_resnet50_on_a_1333_by_800_photo_make_less_than_six_megabytes(tmp_path):
    from resnet_layers import resnet50_analysis

    file = write(tmp_path / "page.html", [resnet50_analysis()], ["noise.jpg"])
    assert file.stat().st_size < 6e6


def test_a_page_of_many_photos_holds_each_with_its_thumbnail():
    text = page([planted(n) for n in range(3)], ["a", "b", "c"])
    index = json.loads(re.search(r'id="index">(.*?)</script>', text)[1])
    assert [one["title"] for one in index["photos"]] == ["a", "b", "c"]
    assert all(one["thumbnail"].startswith("data:image/jpeg;base64,") for one in index["photos"])
    assert re.findall(r'id="photo-(\d)"', text) == ["0", "1", "2"]


def test_every_page_has_the_segments_of_its_layers_and_none_where_offsets_are_no_numbers():
    analysis = planted()
    analysis.fields["body.top"].offset[0, 0, 0, 3, 4] = float("nan")
    for text in (page([analysis]), deformscope.explorer.explore(analysis.fields, analysis.photo).text):
        layers = json.loads(re.search(r'id="photo-0">(.*?)</script>', text)[1])["layers"]
        found = {layer["name"]: layer.get("segments") for layer in layers}
        assert found.pop("body.top") is None
        for name, held in found.items():
            expected = deformscope.segments(analysis.fields[name])
            assert held["scores"] == [round(score, 4) for score in expected.scores.tolist()]
            assert (unpacked(held["labels"], tuple(held["size"])) == expected.labels).all()


def test_detections_that_are_no_numbers_are_left_out():
    analysis = planted()
    analysis.detection["boxes"][0, 0] = float("nan")
    record = json.loads(re.search(r'id="photo-0">(.*?)</script>', page([analysis]))[1])
    assert [one["label"] for one in record["detections"]] == ["cat", "dog"]
    assert [one["score"] for one in record["detections"]] == [0.62, 0.2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: page([]), "analyses=[]"),
        (lambda: page([planted()], ["a", "b"]), "titles: 2 given for 1"),
        (lambda: page([planted()], segments=[{}, {}]), "segments: 2 given for 1"),
        (lambda: page([planted()], segments=[{"nowhere": planted_segments()}]), "nowhere"),
        (lambda: write("/proc/none/page.html", [planted()]), "/proc/none/page.html"),
        (
            lambda: deformscope.explorer.explore([replace(f, network_size=SIZE) for f in planted_fields().values()]),
            "photo=None: the network's input was not recorded with 'body.low'",
        ),
        (lambda: deformscope.explorer.explore([], planted().photo), "no offset field"),
    ],
)
def test_bad_input_is_named_in_one_line(call, words):
    with pytest.raises(DeformscopeError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(DeformscopeError):
        write(tmp_path / "page.html", [planted()])
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_exploring_takes_fields_with_their_photo(tmp_path):
    fields, photo = planted_fields(), planted().photo
    one = deformscope.explorer.explore(fields["body.low"], photo)
    all_of_them = deformscope.explorer.explore(fields, photo, titles=["mine"])
    assert '"body.top"' not in one.text and '"body.top"' in all_of_them.text
    saved = all_of_them.save(tmp_path / "page.html")
    assert saved.read_text(encoding="utf-8") == all_of_them.text
    assert all_of_them._repr_html_().startswith('<iframe sandbox="allow-scripts allow-downloads"')


def test_the_pages_sources_can_be_read_in_an_editor():
    for file in Path(document.__file__).parent.iterdir():
        if file.suffix in (".js", ".css", ".html"):
            lines = file.read_text(encoding="utf-8").splitlines()
            assert len(lines) <= 350, file.name
            assert max(map(len, lines)) <= 120, file.name
