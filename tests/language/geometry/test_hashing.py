import numpy as np

from soma_agents.language.geometry.embedder import Embedder, fold
from soma_agents.language.geometry.hashing import BASE, GRAM_SHARE, Grams, hash_vectors
from soma_agents.language.geometry.words import Bag
from soma_agents.language.symbols.pieces import Pieces
from soma_agents.language.symbols.records import GOLDEN

MASK = (1 << 64) - 1
TEXTS = ["The cat sat on the mat.", "Münchner Straße", "我喜欢猫", "!!!", "", "a"]


def plain_hash(characters, salt):
    """The formula of `hashing`, number by number."""
    z = salt * int(GOLDEN) + sum(ord(c) * pow(BASE, k, 1 << 64) for k, c in enumerate(characters))
    z &= MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def test_hashes_are_those_of_the_formula():
    words = ["cat", "a", "straße", "喜"]

    grams = Grams(Pieces.of([word.encode() for word in words]))

    assert grams.words.tolist() == [plain_hash(f"<{word}>", 0) for word in words]
    for n in (3, 4, 5):
        counts, hashes = grams.of_size(n)
        listed = [[f"<{w}>"[i : i + n] for i in range(len(w) + 3 - n)] for w in words]
        assert counts.tolist() == [len(some) for some in listed]
        assert hashes.tolist() == [plain_hash(gram, n) for some in listed for gram in some]


def test_a_bucket_holds_the_sum_of_what_falls_into_it():
    grams = Grams(Pieces.of([b"cat", b"dog"]))
    bag = Bag(np.array([0, 0]), np.array([0, 1]), np.array([4, 1]))
    weights = np.array([1.0, 0.5], np.float32)

    (made,) = hash_vectors(bag, grams, weights, 1, 16)

    expected = np.zeros(16)
    for word, strength in (("<cat>", 2.0), ("<dog>", 0.5)):
        parts = [(word, salt, np.sqrt((1 - GRAM_SHARE) / 4)) for salt in (0, 64, 65, 66)]
        several = [(word[i : i + n], n) for n in (3, 4, 5) for i in range(6 - n)]
        parts += [(gram, n, np.sqrt(GRAM_SHARE / len(several))) for gram, n in several]
        for characters, salt, share in parts:
            found = plain_hash(characters, salt)
            expected[(found >> 32) * 16 >> 32] += strength * share * (1 if found & 1 else -1)
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_the_untrained_vectors_are_the_same_in_every_process():
    made = Embedder.untrained().embed(["The cat sat on the mat."])[0]

    # Whoever stored vectors must be able to compare them with those of the next release.
    assert made.shape == (1104,)
    strong = np.flatnonzero(np.abs(made) > 0.2)
    assert strong.tolist() == [51, 56, 64, 132, 170, 323, 410, 464, 597, 603, 762, 826, 996]
    signs = [-1, -1, 1, -1, -1, 1, 1, 1, -1, 1, 1, 1, 1]
    size = np.where(strong == 56, 0.391985, 0.218080)
    np.testing.assert_allclose(made[strong], signs * size, atol=1e-5)


def test_every_text_has_a_vector_of_length_one_that_depends_on_nothing_beside_it():
    embedder = Embedder.untrained()

    together = embedder.embed(TEXTS)

    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, made in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(embedder.embed([text])[0], made, atol=1e-6)


def test_texts_that_share_words_or_parts_of_words_are_nearer():
    texts = ["The cats were sleeping", "a sleeping cat", "Stock prices fell", "asleep"]

    made = Embedder.untrained().embed(texts)

    cosines = made @ made[0]
    assert cosines[1] > 0.3
    assert cosines[3] > cosines[2] + 0.05
    assert abs(cosines[2]) < 0.15


def test_no_two_words_are_taken_for_one():
    words = [f"{a}{b}" for a in "bcdfghjklmnpqrstvwxz" for b in ("erat", "ilon", "umbix", "ossy")]

    made = Embedder.untrained().embed(words)

    strange = [[a[0] != b[0] and a[1:] != b[1:] for b in words] for a in words]
    assert (made @ made.T)[np.array(strange)].max() < 0.4


def test_folding_keeps_cosines_roughly_and_lengths_exactly():
    made = Embedder.untrained().embed(
        [f"{a} {b} {c}" for a in ("cat", "dog") for b in ("sat", "ran") for c in ("here", "home")]
    )

    for dimensions in (1103, 512, 256):
        folded = fold(made, dimensions)
        assert folded.shape == (8, dimensions)
        np.testing.assert_allclose(np.linalg.norm(folded, axis=1), 1, rtol=1e-5)
        assert np.abs(folded @ folded.T - made @ made.T).mean() < 0.1
    assert fold(made, 1104) is made
