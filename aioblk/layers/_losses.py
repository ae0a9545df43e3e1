"""How often what lies below was lost: a device that has come back may lack what was not flushed."""

__all__ = ["losses_of"]


def losses_of(device: object) -> int:
    """Of a device, or of those that a layer lies over, as far as they tell. It never falls."""
    if isinstance(losses := getattr(device, "losses", None), int):
        return losses
    below = (getattr(device, name, None) for name in ("device", "base", "overlay"))
    return sum(losses_of(each) for each in below if each is not None)
