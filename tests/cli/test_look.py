"""The command line as a person uses it: files where they were asked for, one clear line where something is wrong."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import deformscope
from deformscope import Fields
from deformscope.analysis import Analysis


def test_figures_writes_every_view_and_prints_its_path(command, photo, weights, tmp_path):
    out = tmp_path / "figures"
    code, printed, complaints = command("figures", photo, "--detector", weights, "--out", out, "--dpi", 40)
    assert (code, complaints) == (0, "")
    written = sorted(path.name for path in (out / "a photo").iterdir())
    heads = [f"heads-stride{s}-deform" for s in (16, 32, 8)]
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
    assert names == {f"figure1-heads-stride16-deform.{kind}", f"figure2.{kind}"}
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
        "figure1-heads-stride16-deform-composed",
        "sampling-heads-stride16-deform",
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


@pytest.mark.parametrize("there", [False, True])
def test_photos_of_which_nothing_can_be_drawn_leave_nothing(command, weights, tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    code, printed, complaints = command("figures", tmp_path / "none.jpg", "--detector", weights, "--out", out)
    assert (code, printed) == (2, "")
    assert complaints.count("\n") == 1 and "none.jpg: no such file" in complaints
    assert out.exists() == there and not list(out.rglob("*"))


def test_jobs_draw_the_same_pictures_and_print_them_in_the_same_order(command, photo, weights, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.open(photo).rotate(90 * number, expand=True).save(folder / f"{number}.png")
    (folder / "1b.jpg").write_text("this is text")
    said = {}
    for jobs in (1, 2):
        arguments = ("--out", tmp_path / f"{jobs}", "--view", "figure2", "--dpi", 40, "--jobs", jobs)
        said[jobs] = command("figures", folder, "--detector", weights, *arguments)
        said[jobs] = tuple(str(text).replace(str(tmp_path / f"{jobs}"), "") for text in said[jobs])
    assert said[1] == said[2]
    assert said[1][0] == "2" and "1b.jpg" in said[1][2]
    for one in (tmp_path / "1").rglob("*.png"):
        assert (tmp_path / "2" / one.relative_to(tmp_path / "1")).read_bytes() == one.read_bytes()
    records = [json.loads((tmp_path / f"{jobs}" / "manifest.json").read_text()) for jobs in (1, 2)]
    assert records[0]["photos"] == records[1]["photos"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photo}x"], r"a photo.jpgx: no such file; check the path"),
        (
            ["{photo}", "--view", "figure9"],
            'Invalid value "figure9" for --view. Choose from: "figure1", "figure2"',
        ),
        (["{photo}", "--format", "bmp"], 'Invalid value "bmp" for --format. Choose from: "png", "svg", "pdf".'),
        (
            ["{photo}", "--layer", "heads.strid16.deform"],
            "no deformable call named 'heads.strid16.deform'; nearest: 'heads.stride16.deform'",
        ),
        (["{photo}", "--layer", "*Stride8*"], "no deformable call named '*Stride8*'; nearest: 'heads.stride8.deform'"),
        (["{photo}", "--layer", "layer9"], "no deformable call named 'layer9'; captured: 'heads.stride8.deform'"),
        (["{photo}", "--cell-step", "0"], 'Invalid value "0" for --cell-step. Must be >= 1.'),
        (["{photo}", "--jobs", "0"], 'Invalid value "0" for --jobs. Must be >= 1.'),
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
    for text in ("heads.stride8.deform", "stride", "3×3", "median |offset|", "max |offset|"):
        assert text in table
    code, table, _ = command("layers", "--detector", weights)
    assert code == 0
    assert "heads.stride32.deform" in table
    assert "median" not in table


def test_layers_writes_strides_as_kernels_are_written_down_by_across(command, make_field, monkeypatch):
    found = Analysis(np.zeros((112, 40, 3), np.uint8), Fields({"layer": make_field()}))
    monkeypatch.setattr(deformscope, "load", lambda name, fit: torch.nn.Identity())
    monkeypatch.setattr(deformscope, "analyse", lambda detector, photo: found)
    code, table, _ = command("layers")
    (row,) = [line for line in table.splitlines() if "layer " in line and "×" in line]
    assert code == 0 and re.findall(r"\d+×\d+", row) == ["16×4", "3×2", "2×1"]  # stride, kernel, its own step


def test_figures_load_scikit_image_only_for_segments(photo, weights, tmp_path):
    program = (
        "import sys; from deformscope.cli.app import app; import deformscope.cli\n"
        f"app(['figures', {str(photo)!r}, '--detector', {str(weights)!r}, '--out', {str(tmp_path)!r}, '--dpi', '30'], "
        "result_action='return_value')\n"
        "print([m for m in ('skimage', 'scipy.spatial', 'sklearn', 'lightning', 'gradio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


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


def test_explore_writes_one_page_of_all_photos_and_names_the_bad_one(command, weights, photo, tmp_path):
    (tmp_path / "bad.png").write_text("text")
    out = tmp_path / "pages/page.html"
    code, printed, complaints = command("explore", photo, tmp_path / "bad.png", "--detector", weights, "--out", out)
    assert code == 2
    assert "bad.png: not an image" in complaints
    assert printed.strip() == str(out)
    assert "a photo.jpg" in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
