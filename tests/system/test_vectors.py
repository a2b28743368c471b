"""What SOMA's own processes do without must not be missing where it is needed."""

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow]


def test_the_gateway_on_ray_makes_vectors_of_texts(daemon):
    texts = ["The cat sat on the mat.", "A cat sits on a mat.", "Prices rose in May."]

    answer = daemon.http.post("/v1/embeddings", json={"input": texts, "model": "soma-embed"})

    assert answer.status_code == 200, answer.text
    cat, again, prices = (each["embedding"] for each in answer.json()["data"])
    near, far = (sum(a * b for a, b in zip(cat, other, strict=True)) for other in (again, prices))
    assert near > far
