"""`deformscope train` and `deformscope ablate`, as users call them."""

import json


def test_train_then_ablate_then_take_its_offsets_apart(tiny_overrides, tmp_path, command):
    tiny_overrides = [*tiny_overrides, "run.steps=4"]
    code, out, _ = command("train", "shapes", *tiny_overrides, "--out", tmp_path / "one")
    assert code == 0
    assert "ap/object" in out
    both = ["--modes", "none", "full", "--seeds", 1, "--out", tmp_path / "all"]
    code, out, _ = command("ablate", "shapes", *tiny_overrides, *both)
    assert code == 0
    assert out.splitlines()[0].startswith("none, seed 0: AP ")
    content = json.loads((tmp_path / "all" / "ablation.json").read_text())
    assert [one["offset_mode"] for one in content["runs"]] == ["none", "full"]
    assert content["command"].startswith("deformscope ablate shapes ")
    replace = ["--at-test-time", tmp_path / "one", "--out", tmp_path / "all"]
    code, out, _ = command("ablate", "shapes", *tiny_overrides, *replace)
    assert code == 0
    assert (tmp_path / "all" / "at_test_time.md").exists()


def test_a_wrong_key_is_one_line_and_code_2(tmp_path, command):
    code, _, err = command("train", "shapes", "optimizer.lr=1", "--out", tmp_path)
    assert code == 2
    assert err == "deformscope: optimizer: no such key; did you mean 'optimiser'?\n"
