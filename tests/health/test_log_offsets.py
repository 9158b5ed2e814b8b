"""Offsets watched while training: curves and figures in the log, and the training undisturbed."""

import numpy as np
import pytest
import queries_network
import torch

from deformscope import DeformscopeError
from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import DenseDetector
from deformscope.health.log_offsets import attention_curves, curves, log_offsets


@pytest.fixture
def detector():
    torch.manual_seed(0)
    made = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96))
    for head in made.heads.values():
        torch.nn.init.normal_(head.deform.conv_offset.weight, std=0.05)
    return made.train()


@pytest.fixture
def photos():
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (60, 90, 3), dtype=np.uint8) for _ in range(2)]


class Writer:
    """What a TensorBoard SummaryWriter has."""

    def __init__(self):
        self.scalars, self.images = {}, {}

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def add_image(self, name, image, step, dataformats):
        assert dataformats == "HWC"
        self.images[name, step] = image


def test_curves_and_the_three_figures_are_logged_and_every_modules_mode_is_as_before(detector, photos):
    writer = Writer()
    modes = [module.training for module in detector.modules()]
    assert True in modes
    assert False in modes  # the trunk is frozen
    found = log_offsets(writer, detector, photos, step=7)
    assert [module.training for module in detector.modules()] == modes
    assert writer.scalars["offsets/heads.stride8.deform/median", 7] == found.layers[0].median > 0
    assert writer.scalars["offsets/broken", 7] == sum(layer.verdict == "broken" for layer in found.layers)
    layers = [f"offsets/heads.stride{s}.deform/figure1" for s in (8, 16, 32)]
    assert [name for name, _ in writer.images] == [*layers, "offsets/figure2", "offsets/figure3"]
    for image in writer.images.values():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert len(np.unique(image)) > 20


def test_a_photo_goes_through_the_network_once(detector, photos):
    passes = []
    detector.trunk.register_forward_hook(lambda *_: passes.append(1))
    log_offsets(Writer(), detector, photos, 0)
    assert len(passes) == len(photos)


def test_the_mode_comes_back_when_logging_fails(detector, photos):
    with pytest.raises(DeformscopeError, match="expected a Lightning logger"):
        log_offsets(object(), detector, photos, 0)
    assert detector.training
    with pytest.raises(DeformscopeError, match="at least one photo"):
        log_offsets(Writer(), detector, [], 0)


def test_nan_offsets_are_logged_as_broken_and_not_drawn(detector, photos):
    torch.nn.init.constant_(detector.heads["stride8"].deform.conv_offset.bias, torch.nan)
    writer = Writer()
    found = log_offsets(writer, detector, photos[:1], 0)
    assert found.findings[0].ailment == "non-finite"
    assert curves(found)["offsets/broken"] >= 1
    assert next(name for name, _ in writer.images) == "offsets/heads.stride16.deform/figure1"


def test_attention_has_curves_of_its_own_and_its_encoder_is_drawn(photos):
    writer = Writer()
    found = log_offsets(writer, queries_network.detector(), photos, step=3)
    names = {name for name, _ in writer.scalars}
    for layer in ("net.encoder", "net.decoder.0", "net.decoder.1"):
        fields = [one.attention[layer] for one in found.fields]
        for level in (0, 1):
            share = sum(float(field.weights[..., field.level == level].sum(-1).mean()) for field in fields) / 2
            assert writer.scalars[f"offsets/{layer}/level{level}", 3] == pytest.approx(share, rel=1e-5)
        heaviest = sum(float(field.weights.amax(-1).mean()) for field in fields) / 2
        assert writer.scalars[f"offsets/{layer}/heaviest", 3] == pytest.approx(heaviest, rel=1e-5)
        assert {f"offsets/{layer}/{name}" for name in ("median", "largest", "beyond")} <= names
    field = found.fields[0].attention["net.encoder"]
    cells = torch.tensor(field.input_size) / torch.tensor(field.level_sizes)[field.level]
    lengths = ((field.points - field.level_reference[:, :, field.level][:, :, None]) / cells).square().sum(-1)
    rms = (lengths * field.weights).sum(-1).mean().sqrt()
    assert attention_curves(field)["displacement"] == pytest.approx(float(rms), rel=1e-4)
    assert [name for name, _ in writer.images] == ["offsets/figure2", "offsets/figure3"]
    writer = Writer()
    log_offsets(writer, queries_network.without_encoder(), photos[:1], step=0)
    assert ("offsets/net.decoder.1/displacement", 0) in writer.scalars and not writer.images


def test_attention_that_is_not_finite_is_logged_as_broken_and_not_drawn(photos):
    detector, writer = queries_network.detector(), Writer()
    torch.nn.init.constant_(detector.net.encoder.sampling_offsets.bias, torch.nan)
    log_offsets(writer, detector, photos[:1], 0)
    assert writer.scalars["offsets/broken", 0] >= 1 and not writer.images
    assert not any(np.isnan(value) for value in writer.scalars.values())


def test_tensorboard_can_read_what_is_logged(detector, photos, tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard, of the train extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        log_offsets(writer, detector, photos[:1], 3)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert "offsets/heads.stride16.deform/largest" in read.Tags()["scalars"]
    assert "offsets/figure2" in read.Tags()["images"]
    assert read.Images("offsets/figure2")[0].step == 3


def test_the_callback_logs_the_zero_start_and_every_nth_step(photos, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning, of the train extra")
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from deformscope.health.lightning import OffsetWatch

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96))

        def training_step(self, batch, index):
            predictions = self.detector.predict(self.detector.trunk(batch))
            target = {"boxes": torch.tensor([[5.0, 5.0, 50.0, 60.0]]), "labels": torch.tensor([0])}
            return sum(self.detector.prediction_losses(predictions, [target] * len(batch)).values())

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(6, 3, 64, 96), batch_size=1)

    pytest.importorskip("tensorboard", reason="needs tensorboard, of the train extra")
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    watch = OffsetWatch(photos[:1], every=2, model=lambda module: module.detector)
    trainer = lightning.Trainer(
        max_steps=5,
        logger=loggers,
        callbacks=[watch],
        accumulate_grad_batches=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Module())
    for logger in loggers:
        logger.finalize("success")
    rows = next((tmp_path / "csv").rglob("metrics.csv")).read_text().splitlines()
    steps = [int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]]
    assert steps == [0, 2, 4]
    column = rows[0].split(",").index("offsets/heads.stride8.deform/largest")
    largest = [float(row.split(",")[column]) for row in rows[1:]]
    assert largest[0] == 0 < largest[1] < largest[2]  # out of the zero start
    broken = rows[0].split(",").index("offsets/broken")
    assert float(rows[1].split(",")[broken]) == 3
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(loggers[1].log_dir)
    read.Reload()
    assert [event.step for event in read.Images("offsets/figure3")] == [0, 2, 4]
