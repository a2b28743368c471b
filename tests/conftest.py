import pytest
import ray


@pytest.fixture(autouse=True)
def _no_ray_unless_marked(request, monkeypatch):
    """A test that starts Ray by accident takes minutes and leaves processes behind."""
    if request.node.get_closest_marker("ray"):
        return

    def refuse(*_, **__):
        raise AssertionError("ray.init in a test that is not marked `ray`")

    monkeypatch.setattr(ray, "init", refuse)
