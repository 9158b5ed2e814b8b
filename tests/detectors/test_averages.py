"""Files with an average of their weights beside them: the plain weights, and the average on request."""

import pytest
import torch

from deformscope.detectors.checkpoints.detectron2 import to_theirs as to_detectron2
from deformscope.detectors.checkpoints.mmdet import to_theirs
from deformscope.detectors.rcnn.config import DETECTRON2
from deformscope.detectors.zoo import load
from deformscope.errors import DeformscopeError


@pytest.fixture
def both(thin, random_rcnn):
    """A detector and what shall be its average, of other numbers; both version 2."""
    return random_rcnn(thin("mdconv_c3-c5")), random_rcnn(thin("mdconv_c3-c5"))


def theirs(detector, before: str = "") -> dict[str, torch.Tensor]:
    return {before + to_theirs(key): value.clone() for key, value in detector.state_dict().items()}


def buffers(detector, names) -> dict[str, torch.Tensor]:
    """As mmcv registers them: no buffer's name may have a dot."""
    return {f"ema_{name.replace('.', '_')}": value for name, value in theirs(detector).items() if name in names}


def holds(loaded, detector) -> None:
    for key, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def saved(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_ema_buffers_are_the_average(tmp_path, both):
    own, average = both
    state = {"module." + key: value for key, value in (theirs(own) | buffers(average, set(theirs(own)))).items()}
    path = saved(tmp_path, {"state_dict": state, "meta": {"mmdet_version": "2.25.0"}})
    holds(load(path), own)
    holds(load(path, weights="ema"), average)


def test_what_is_not_averaged_comes_from_the_plain_weights(tmp_path, both):
    """Hooks with skip_buffers leave batch norm's statistics out."""
    own, average = both
    parameters = {to_theirs(name) for name, _ in own.named_parameters()}
    path = saved(tmp_path, {"state_dict": theirs(own) | buffers(average, parameters)})
    loaded = load(path, weights="ema")
    for name, value in loaded.state_dict().items():
        expected = average if to_theirs(name) in parameters else own
        assert torch.equal(value, expected.state_dict()[name]), name


@pytest.mark.parametrize(("priority", "exchanged"), [("49", True), ("'NORMAL'", False)])
def test_a_hook_that_runs_before_saving_has_exchanged_both(tmp_path, both, priority, exchanged):
    own, average = both
    state = theirs(own) | buffers(average, set(theirs(own)))
    config = f"custom_hooks = [dict(type='ExpMomentumEMAHook', momentum=0.0001, priority={priority})]"
    path = saved(tmp_path, {"state_dict": state, "meta": {"config": config}})
    holds(load(path), own)
    holds(load(path, weights="ema"), own if exchanged else average)


def test_an_averaged_model_of_torch_holds_the_average_alone(tmp_path, both):
    own, _ = both
    state = {"n_averaged": torch.tensor(3)} | theirs(own, "module.")  # as torch.optim.swa_utils.AveragedModel has it
    path = saved(tmp_path, {"state_dict": state})
    holds(load(path), own)
    holds(load(path, weights="ema"), own)


def test_a_student_is_plain_and_its_teacher_the_average(tmp_path, both):
    own, average = both
    state = theirs(own, "module.student.") | theirs(average, "module.teacher.")
    # The configuration is that of the pair, with the detector in it.
    config = "model = dict(type='SoftTeacher', detector=dict(backbone=dict(type='ResNet', style='caffe')))"
    path = saved(tmp_path, {"state_dict": state, "meta": {"cfg": config, "dataset_meta": {"classes": ["a", "b", "c"]}}})
    holds(load(path), own)
    holds(load(path, weights="ema"), average)
    assert load(path).config.dialect.stride_in_1x1
    assert load(path).class_names == ("a", "b", "c")
    alone = saved(tmp_path, {"state_dict": theirs(average, "teacher.")})
    holds(load(alone), average)
    # mmengine's hook keeps the average as the plain weights.
    exchanged = {"state_dict": theirs(average), "ema_state_dict": theirs(own, "module.") | {"steps": torch.tensor(9)}}
    holds(load(saved(tmp_path, exchanged)), average)
    holds(load(saved(tmp_path, exchanged), weights="ema"), average)


def test_a_pair_of_detectron2_is_read_too(tmp_path, thin, random_rcnn):
    own, average = (random_rcnn(thin(dialect=DETECTRON2)) for _ in range(2))
    state = {
        before + to_detectron2(key): value
        for before, one in (("modelStudent.", own), ("modelTeacher.", average))
        for key, value in one.state_dict().items()
        if value.ndim
    }
    path = saved(tmp_path, {"model": state, "iteration": 3})
    holds(load(path), own)
    holds(load(path, weights="ema"), average)


def test_an_average_that_is_not_there_is_refused_in_one_line(tmp_path, both):
    own, _ = both
    own.save(tmp_path / "own.safetensors")
    files = {
        "plain": saved(tmp_path, {"state_dict": theirs(own)}),
        "native": tmp_path / "own.safetensors",
        "packaged": "packaged",
    }
    for file in files.values():
        with pytest.raises(DeformscopeError, match=r"weights='ema': .*leave it out") as error:
            load(file, weights="ema")
        assert "\n" not in str(error.value)
    torch.save({"state_dict": theirs(own, "student.")}, tmp_path / "student.pth")
    holds(load(tmp_path / "student.pth"), own)
    with pytest.raises(DeformscopeError, match=r"no teacher\.… keys"):
        load(tmp_path / "student.pth", weights="ema")
