"""The packaged architecture: every cell inside a box predicts it, or proposes it to a Faster R-CNN."""

from .config import DenseConfig as DenseConfig, DenseRCNNConfig as DenseRCNNConfig, TrunkConfig as TrunkConfig
from .dense import DenseDetector as DenseDetector, SmallDetector as SmallDetector
from .dense_rcnn import DenseRCNN as DenseRCNN
