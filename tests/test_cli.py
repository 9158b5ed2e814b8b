"""The command line as a person uses it: files where they were asked for, one clear line where something is wrong."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import deformscope
from deformscope.cli import app


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A small untrained detector with random offsets, in a file of its own."""
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    config = DenseConfig(("cat", "dog"), channels=16, shorter_side=64, longer_side=128)
    detector = DenseDetector(config)
    for head in detector.heads.values():
        torch.nn.init.normal_(head.deform.conv_offset.weight, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    detector.save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)).save(path)
    return path


def test_figures_writes_every_view_and_prints_its_path(command, photo, weights, tmp_path):
    out = tmp_path / "figures"
    code, printed, complaints = command("figures", photo, "--detector", weights, "--out", out, "--dpi", 40)
    assert (code, complaints) == (0, "")
    written = sorted(path.name for path in (out / "a photo").iterdir())
    heads = [f"heads.stride{s}.deform" for s in (16, 32, 8)]
    views = [f"{view}-{head}.png" for view in ("figure1", "sampling") for head in heads]
    assert written == sorted([*views, "figure2.png", "figure3.png", "overview.png"])
    assert set(printed.splitlines()) == {*(str(out / "a photo" / name) for name in written), str(out / "manifest.json")}
    assert all(Image.open(out / "a photo" / name).size[0] > 50 for name in written)


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_views_layers_and_format_can_be_chosen(kind, command, photo, weights, tmp_path):
    code, _, _ = command(
        *("figures", photo, "--detector", weights, "--out", tmp_path, "--format", kind),
        *("--view", "figure2", "--view", "figure1", "--layer", "*stride16.deform", "--cell-step", 1, "--scale", 2),
    )
    assert code == 0
    names = {path.name for path in (tmp_path / "a photo").iterdir()}
    assert names == {f"figure1-heads.stride16.deform.{kind}", f"figure2.{kind}"}
    if kind == "svg":
        text = (tmp_path / "a photo" / "figure2.svg").read_text()
        assert "heads.stride16.deform" in text
        assert "heads.stride32" not in text
        assert "×2, every cell" in text


def test_stacked_layers_are_drawn_as_one_field_and_their_sampling_points_through_them(command, photo, tmp_path):
    arguments = (
        "--view",
        "figure1",
        "--view",
        "sampling",
        "--layer",
        "*stride16.deform",
        "--depth",
        2,
        "--format",
        "svg",
    )
    code, _, complaints = command("figures", photo, "--out", tmp_path, "--composed", *arguments)
    assert (code, complaints) == (0, "")
    both = "heads.stride16.deform+before.0"
    folder = tmp_path / "a photo"
    assert {path.stem for path in folder.iterdir()} == {
        f"figure1-{both.replace('+', '-')}",
        "sampling-heads.stride16.deform",
    }
    assert both in next(folder.glob("figure1*")).read_text()


def test_the_manifest_says_what_the_run_was_made_from(command, photo, weights, tmp_path):
    import hashlib

    command("figures", photo, "--detector", weights, "--out", tmp_path, "--view", "figure3", "--cell-step", 2)
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert record["photos"][0]["sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert record["photos"][0]["files"] == ["a photo/figure3.png"]
    assert record["settings"]["cell_step"] == 2
    assert record["detector"] == "small"
    assert record["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["versions"]["torch"] == torch.__version__


def test_a_bad_photo_in_a_folder_is_reported_and_the_rest_go_on(command, photo, weights, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    (folder / "again").mkdir(parents=True)
    for name in ("first.jpg", "again/first.jpg"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "bad.jpg").write_text("this is text")
    code, _, complaints = command(
        "figures", folder, "--detector", weights, "--out", out, "--view", "figure3", "--dpi", 40
    )
    assert code == 2
    assert complaints.count("\n") == 1
    assert "bad.jpg: not an image that can be read" in complaints
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        "first-2/figure3.png",
        "first/figure3.png",
    ]
    errors = [p["error"] for p in json.loads((out / "manifest.json").read_text())["photos"]]
    assert sum(bool(error) for error in errors) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photo}x"], r"a photo.jpgx: no such file; check the path"),
        (
            ["{photo}", "--view", "figure9"],
            'Invalid value "figure9" for --view. Choose from: "figure1", "figure2"',
        ),
        (["{photo}", "--format", "bmp"], 'Invalid value "bmp" for --format. Choose from: "png", "svg", "pdf".'),
        (["{photo}", "--layer", "layer9"], "no deformable call named 'layer9'; captured: 'heads.stride8.deform'"),
        (["{photo}", "--cell-step", "0"], 'Invalid value "0" for --cell-step. Must be >= 1.'),
        (["{photo}", "--cell-step", "few"], "--cell-step"),
        (["{photo}", "--every", "2"], "--every is now called --cell-step"),
        (["{photo}", "--least=0.3"], "--least is now called --min-score"),
        (["{photo}", "--at", "here"], 'Invalid value for --at: "here"; expected X,Y in photo px, such as 120,80'),
        (["{photo}", "--at", "900,3"], "outside the photo, which is 90 high and 130 wide"),
        (["{photo}", "--group", "4"], "--group 4: expected below 1"),
        (["{photo}", "--detector", "nope"], "nope"),
        (["{photo}", "--colour", "red"], "--colour"),
        ([], "PHOTOS"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(arguments, message, command, photo, weights, tmp_path):
    out = tmp_path / "out"
    given = [argument.replace("{photo}", str(photo)) for argument in arguments]
    if "--detector" not in given:
        given += ["--detector", str(weights)]
    code, printed, complaints = command("figures", *given, "--out", out)
    assert code == 2
    assert message in complaints
    assert complaints.count("\n") == 1
    assert not list(out.rglob("*.png"))
    assert not [line for line in printed.splitlines() if line.endswith(".png")]


def test_a_folder_that_cannot_be_written_to_is_named(command, photo, weights, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, complaints = command("figures", photo, "--detector", weights, "--out", tmp_path / "file" / "out")
    assert code == 2
    assert "cannot be written to" in complaints
    assert complaints.count("\n") == 1


@pytest.mark.parametrize("size", [(64, 64), (200, 64), (64, 333), (6000, 4000)])
def test_photos_of_any_size_are_drawn(size, command, weights, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize(size).save(path)
    code, _, complaints = command("figures", path, "--detector", weights, "--out", tmp_path / "out", "--dpi", 40)
    assert (code, complaints) == (0, "")


def test_layers_lists_geometry_and_with_a_photo_the_offsets(command, photo, weights):
    code, table, _ = command("layers", photo, "--detector", weights)
    assert code == 0
    for text in ("heads.stride8.deform", "reduction", "3×3", "median |offset|", "max |offset|"):
        assert text in table
    code, table, _ = command("layers", "--detector", weights)
    assert code == 0
    assert "heads.stride32.deform" in table
    assert "median" not in table


def test_importing_deformscope_imports_neither_torchvision_nor_matplotlib():
    program = (
        "import sys, deformscope; print([m for m in ('torchvision', 'matplotlib', 'PIL', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_help_loads_anything_heavy():
    program = (
        "import sys; from deformscope.cli import app\n"
        "for name in [name for name in app if not name.startswith('-')]:\n"
        "    app([name, '--help'], result_action='return_value')\n"
        "heavy = ('torch', 'torchvision', 'numpy', 'matplotlib', 'lightning', 'PIL', 'pycocotools')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage: deformscope train" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_an_analysis_is_kept_whole_in_its_file(weights, photo, tmp_path):
    from deformscope import Analysis, DeformscopeError, analyse, load

    made = analyse(load(weights), photo)
    made.save(tmp_path / "a.safetensors")
    again = Analysis.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(again.photo, made.photo)
    assert list(again.fields) == list(made.fields)
    for name, field in made.fields.items():
        torch.testing.assert_close(again.fields[name].offset, field.offset)
        assert again.fields[name].cells == field.cells
        assert again.fields[name].placements == field.placements
    assert again.class_names == ("cat", "dog")
    torch.testing.assert_close(again.detection["boxes"], made.detection["boxes"])
    with pytest.raises(DeformscopeError, match="no readable analysis"):
        Analysis.load(photo)
    with pytest.raises(DeformscopeError, match=r"format None; expected"):
        Analysis.load(weights)


def test_detectors_lists_what_a_name_stands_for(command, monkeypatch, tmp_path):
    monkeypatch.setenv("DEFORMSCOPE_CACHE", str(tmp_path))
    code, table, _ = command("detectors")
    assert code == 0
    for text in ("packaged", "mmdet/faster_rcnn_r50_fpn_dconv_c3-c5", "41.3", "detectron2/", "cached", str(tmp_path)):
        assert text in table


@pytest.fixture
def coco(photo, tmp_path):
    """Two photos in COCO's layout."""
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/val").mkdir()
    images, objects = [], []
    for index in (1, 2):
        (tmp_path / f"coco/val/{index}.jpg").write_bytes(photo.read_bytes())
        images.append({"id": index, "file_name": f"{index}.jpg", "width": 130, "height": 90})
        box = [10.0, 20.0, 50.0, 40.0]
        objects.append({"id": index, "image_id": index, "category_id": 7, "bbox": box, "area": 2000.0, "iscrowd": 0})
    record = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "cat"}]}
    (tmp_path / "coco/annotations/instances_val.json").write_text(json.dumps(record))
    return tmp_path / "coco"


def test_evaluate_prints_the_ap_of_a_folder_in_cocos_layout(command, weights, coco):
    code, table, complaints = command("evaluate", coco, "--detector", weights, "--offset-mode", "none")
    assert (code, complaints) == (0, "")
    assert "AP50" in table
    assert "box" in table
    assert "AP by class" in table and "cat" in table
    code, chosen, _ = command("evaluate", "--data", coco, "--detector", weights, "--classes", "cat", "dog")
    assert code == 2 and chosen == ""  # no dog there
    code, chosen, _ = command("evaluate", "--data", coco, "--detector", weights, "--classes", "cat")
    assert code == 0 and "does not know" not in chosen


def test_evaluate_names_the_classes_that_the_detector_does_not_know_and_what_was_left_out(command, weights, coco):
    file = coco / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 8, "name": "okapi"})
    content["annotations"].append(content["annotations"][0] | {"id": 9, "category_id": 8})
    content["annotations"].append(content["annotations"][0] | {"id": 10, "bbox": [1, 2, 0, 0]})
    file.write_text(json.dumps(content))
    code, _, complaints = command("evaluate", "--data", coco, "--detector", weights)
    assert code == 2 and "1.jpg, annotation 10: bbox [1, 2, 0, 0]: zero area" in complaints
    code, printed, complaints = command("evaluate", "--data", coco, "--detector", weights, "--broken", "skip")
    assert code == 0
    assert "does not know okapi, which counts as 0" in printed
    assert complaints.startswith(f"deformscope: {file}: 1 broken annotations or photos: 1.jpg, annotation 10: bbox")
    assert complaints.endswith("zero area; they are left out\n") and complaints.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{coco}/nowhere"], "no such file or folder; expected a folder in COCO's layout"),
        (["--data", "{coco}", "--split", "test"], "no annotations/instances_test.json; there: instances_val.json"),
        (["--data", "{coco}", "--device", "abacus"], 'Invalid value "abacus" for --device. Not available here'),
        (["--data", "{coco}", "--offset-mode", "half"], 'Invalid value "half" for --offset-mode. Choose from'),
        (["--data", "{coco}", "--max-photos", "0"], 'Invalid value "0" for --max-photos. Must be >= 1.'),
        (["--data", "{coco}", "--limit", "3"], "--limit is now called --max-photos"),
    ],
)
def test_evaluate_names_what_is_wrong(arguments, message, command, weights, coco):
    given = [argument.replace("{coco}", str(coco)) for argument in arguments]
    code, _, complaints = command("evaluate", *given, "--detector", weights)
    assert code == 2
    assert message in complaints
    assert complaints.count("\n") == 1


COMMANDS = tuple(name for name in app if not name.startswith("-"))


def options(name: str) -> set[str]:
    """The options of a command."""
    return {option for one in app[name].assemble_argument_collection() for option in one.names}


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--device" in options(name)])
@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
def test_a_device_that_is_not_there_is_one_line(name, device, command, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    required = [one for one in app[name].assemble_argument_collection() if one.required]
    code, _, complaints = command(name, *[photo for _ in required], "--device", device)
    assert code == 2
    assert f'Invalid value "{device}" for --device. Not available here' in complaints
    assert complaints.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_the_commands_choices_are_the_librarys():
    from deformscope.cli import look
    from deformscope.draw import batch, style

    assert get_args(look.View) == batch.CHOICES
    assert get_args(look.Format) == tuple(style.FORMATS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_every_option_does(name, command):
    code, text, _ = command(name, "--help")
    assert code == 0
    for one in app[name].assemble_argument_collection():
        assert one.parameter.help, one.names
        assert one.names[0] in text


@pytest.mark.parametrize(
    ("tokens", "message", "shown"),
    [
        (["figures"], "cell_step=0: expected 1", "--cell-step 0: expected 1"),
        (["figures"], "views='x': expected figure1", "--view 'x': expected figure1"),
        (["ablate", "shapes"], "seeds=0, jobs=1: expected at least 1", "--seeds 0, --jobs 1: expected at least 1"),
        (["train", "shapes"], "folder=runs/a: cannot be used", "--out runs/a: cannot be used"),
        (["figures"], "images=[]: expected a photo", "images=[]: expected a photo"),
        (["train", "shapes"], "data.folder: 3; expected text", "data.folder: 3; expected text"),
        (["figures"], "photos/format=1.jpg: no such file", "photos/format=1.jpg: no such file"),
        ([], "format=1: expected", "format=1: expected"),
        (["nonsense"], "format=1: expected", "format=1: expected"),
    ],
)
def test_the_librarys_arguments_are_shown_as_the_commands_flags(tokens, message, shown):
    from deformscope.cli.app import in_flags

    assert in_flags(message, tokens) == shown


def test_only_the_command_line_names_flags():
    """Users of the library have arguments; flags in its errors would be another program's."""
    package = Path(deformscope.__file__).parent
    for file in package.rglob("*.py"):
        if "cli" in file.relative_to(package).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise):
                texts = [
                    one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
                ]
                assert not [text for text in texts if re.search(r"(?<!\w)--[a-z]", text)], (file, node.lineno)


def test_explore_writes_one_page_of_all_photos_and_names_the_bad_one(command, weights, photo, tmp_path):
    (tmp_path / "bad.png").write_text("text")
    out = tmp_path / "pages/page.html"
    code, printed, complaints = command("explore", photo, tmp_path / "bad.png", "--detector", weights, "--out", out)
    assert code == 2
    assert "bad.png: not an image" in complaints
    assert printed.strip() == str(out)
    assert "a photo.jpg" in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
