"""The Lightning callback does what a loop of one's own would."""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.ops import DeformConv2d

from deformscope.training import OffsetSupervision, Schedule
from deformscope.training.callbacks import SuperviseOffsets

BOX = torch.tensor([[3.0, 5.0, 29.0, 21.0]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.offset = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 18, 3, padding=1)
        self.conv = DeformConv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        return self.conv(x, self.offset(x))


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.losses: list[float] = []

    def training_step(self, batch, index):
        if index == 1:
            return None  # Lightning then leaves the step out
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def photos() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def collate(items):
    return torch.stack(items), [BOX] * len(items)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_callback_learns_what_a_plain_loop_learns(tmp_path, accumulated):
    module = Module()
    supervision = OffsetSupervision(module.net, photos()[:1], weight=Schedule(2.0, "decay", 4))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accumulate_grad_batches=accumulated,
        callbacks=[SuperviseOffsets(supervision, lambda batch: batch[1])],
    )
    trainer.fit(module, DataLoader(list(photos()), batch_size=2, collate_fn=collate))
    assert trainer.callback_metrics["loss_offset"] > 0

    plain = Module()
    supervision = OffsetSupervision(plain.net, photos()[:1], weight=Schedule(2.0, "decay", 4))
    optimiser, step = plain.configure_optimizers(), 0
    for index, batch in enumerate(photos().split(2)):
        if index != 1:
            with supervision:
                loss = plain.net(batch).square().mean()
            loss = loss + supervision.loss([BOX] * 2, step)
            (loss / accumulated).backward()
        if (index + 1) % accumulated == 0:
            optimiser.step()  # of a step without a loss too, as Lightning
            step += 1
            optimiser.zero_grad()
    moved = [not torch.equal(a, b) for a, b in zip(Module().parameters(), plain.parameters(), strict=True)]
    assert all(moved)
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)
