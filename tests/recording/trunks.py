"""Trunks of torchvision and timm with a deformable convolution on every stage, and where their cells lie."""

import torch
import torchvision
import torchvision.models as zoo
from torch import nn


class Deform(nn.Module):
    """A deformable convolution with its offset convolution, on a map of any number of channels."""

    def __init__(self, channels, stride=1, offset_stride=None):
        super().__init__()
        self.conv_offset = nn.Conv2d(channels, 18, 3, offset_stride or stride, 1)
        self.weight = nn.Parameter(torch.randn(2, channels, 3, 3))
        self.stride = stride

    def forward(self, x):
        offset = self.conv_offset(x)
        return torchvision.ops.deform_conv2d(x, offset, self.weight, stride=self.stride, padding=1)


class Stages(nn.Module):
    """Stages one after the other; ``maps`` are what they return, channels first."""

    def __init__(self, *stages, last=False):
        super().__init__()
        self.stages, self.last = nn.ModuleList(stages), last

    def maps(self, x):
        for stage in self.stages:
            x = stage(x)
            yield x.permute(0, 3, 1, 2).contiguous() if self.last else x


class Tokens(nn.Module):
    """torchvision's ViT: a class token, encoder layers, and the patches' tokens as a map again."""

    def __init__(self):
        super().__init__()
        self.vit = zoo.VisionTransformer(96, 16, 2, 2, 24, 48)

    def maps(self, x):
        tokens = self.vit._process_input(x)
        tokens = self.vit.encoder(torch.cat([self.vit.class_token.expand(len(x), -1, -1), tokens], 1))[:, 1:]
        yield tokens.transpose(1, 2).reshape(len(x), 24, 6, 6)


class Timm(nn.Module):
    """A network of timm, by name."""

    def __init__(self, name):
        super().__init__()
        import timm

        self.net = timm.create_model(name, features_only=True, pretrained=False)

    def maps(self, x):
        for features, channels in zip(self.net(x), self.net.feature_info.channels(), strict=True):
            yield features.permute(0, 3, 1, 2) if features.shape[1] != channels else features


class Deformable(nn.Module):
    """A trunk with a deformable convolution on every stage."""

    def __init__(self, trunk, size, **geometry):
        super().__init__()
        self.trunk = trunk.eval()
        with torch.no_grad():
            self.layers = nn.ModuleList(Deform(m.shape[1], **geometry) for m in trunk.maps(torch.rand(1, 3, *size)))

    def forward(self, x):
        return [layer(m) for layer, m in zip(self.layers, self.trunk.maps(x), strict=True)]


def children(net, *without):
    return [child for name, child in net.named_children() if name not in (*without, "avgpool", "dropout", "fc")]


def resnet18():
    net = zoo.resnet18()
    return Stages(nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1), *children(net)[4 + 1 :])


def inception_v3():
    net = zoo.inception_v3(init_weights=False, aux_logits=False)
    return Stages(*children(net))


def shufflenet():
    net = zoo.shufflenet_v2_x0_5()
    return Stages(nn.Sequential(net.conv1, net.maxpool), net.stage2, net.stage3, net.stage4)


def regnet():
    net = zoo.regnet_y_400mf()
    return Stages(net.stem, *net.trunk_output)


def maxvit_t():
    net = zoo.maxvit_t(input_size=(224, 224))
    return Stages(net.stem, *net.blocks)


HALF = tuple((2.0**i, 0.5) for i in range(1, 6))
PATCHES = tuple((2.0**i, 2.0 ** (i - 1)) for i in range(2, 6))
POOLED = (4.0, 2.5), (8.0, 6.5), (16.0, 14.5)
TRUNKS = {
    "resnet18": (resnet18, (96, 160), HALF[1:]),
    "vgg11_bn": (lambda: Stages(*zoo.vgg11_bn().features), (96, 160), ((1.0, 0.5), (2.0, 1.0), *PATCHES)),
    "mobilenet_v2": (lambda: Stages(*zoo.mobilenet_v2().features), (96, 160), HALF),
    "mobilenet_v3_small": (lambda: Stages(*zoo.mobilenet_v3_small().features), (96, 160), HALF),
    "densenet121": (
        lambda: Stages(*zoo.densenet121().features),
        (96, 160),
        (*HALF[:2], (8.0, 2.5), (16.0, 6.5), (32.0, 14.5)),
    ),
    "googlenet": (
        lambda: Stages(*children(zoo.googlenet(init_weights=False, aux_logits=False))),
        (97, 161),
        ((2.0, 0.5), *POOLED, (32.0, 22.5)),
    ),
    "inception_v3": (
        inception_v3,
        (107, 139),
        ((2.0, 1.5), (2.0, 3.5), (4.0, 5.5), (4.0, 9.5), (8.0, 13.5), (16.0, 21.5), (32.0, 37.5)),
    ),
    "shufflenet": (shufflenet, (96, 160), HALF[1:]),
    "efficientnet_b0": (lambda: Stages(*zoo.efficientnet_b0().features), (96, 160), HALF),
    "regnet": (regnet, (96, 160), HALF),
    "convnext_tiny": (lambda: Stages(*zoo.convnext_tiny().features), (96, 160), PATCHES),
    "swin_t": (lambda: Stages(*zoo.swin_t().features, last=True), (96, 160), PATCHES),
    "swin_v2_t": (lambda: Stages(*zoo.swin_v2_t().features, last=True), (96, 160), PATCHES),
    "maxvit_t": (maxvit_t, (224, 224), HALF),
    "vit_b_16": (Tokens, (96, 96), PATCHES[2:3]),
}
"""Trunk, size of an image, and (px a cell, px of the first cell's centre) of its stages, without repetitions."""
TIMM = {
    "resnet26d": ((96, 160), HALF),
    "convnextv2_atto": ((96, 160), PATCHES),
    "mobilenetv4_conv_small": ((96, 160), HALF),
    "regnetx_002": ((96, 160), HALF),
    "res2net50_26w_4s": ((96, 160), HALF),
    "poolformer_s12": ((96, 160), ((4.0, 1.5), (8.0, 1.5), (16.0, 1.5), (32.0, 1.5))),
    "pvt_v2_b0": ((224, 224), HALF[1:]),
    "vit_tiny_patch16_224": ((224, 224), PATCHES[2:3]),
    "dla34": ((96, 160), HALF),
    "tresnet_m": ((96, 160), ((4.0, 2.0), (8.0, 2.0), (16.0, 2.0), (32.0, 2.0))),
    "davit_tiny": ((224, 224), ((4.0, 0.5), (8.0, 2.5), (16.0, 6.5), (32.0, 14.5))),
    "hiera_tiny_224": ((224, 224), ()),
}
"""Of timm: size of an image, and the same; empty where places are unknown."""
SEEING_ALL = {"convnext_tiny", "swin_t", "swin_v2_t", "maxvit_t", "vit_b_16", "pvt_v2_b0", "davit_tiny"} | {
    *("convnextv2_atto", "vit_tiny_patch16_224", "hiera_tiny_224", "poolformer_s12")
}
"""Attention, norms over whole maps and kernels as large as the image: their cells lie where their patches do."""
