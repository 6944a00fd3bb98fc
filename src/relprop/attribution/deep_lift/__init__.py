"""DeepLIFT: differences from a reference, passed by secants in the place of gradients."""

from relprop.attribution.deep_lift.deep_lift import DeepLift, DeepLiftShap

__all__ = ["DeepLift", "DeepLiftShap"]
