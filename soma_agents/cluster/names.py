"""What things are called in Ray; importable without Ray."""

NAMESPACE = "soma"
BUS = "bus"
APPLICATION = "soma"
"""The Serve application; its deployments are `Gateway` and, when it is split off, `Engine`."""


def class_name(actor: str) -> str:
    """`user_profile` → `UserProfile`: the name in Ray's dashboard and in the process list."""
    return actor.title().replace("_", "")


def actor_name(class_: str) -> str:
    """`UserProfile` → `user_profile`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in class_).lstrip("_")
