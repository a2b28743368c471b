"""The real model, against the transformers library reading the same file."""

import asyncio

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from arbiters.errors import CorruptError
from arbiters.events import ChatMessage
from soma_agents.language.cache import BatchCache, PromptCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.engine import Engine
from soma_agents.language.lora import LoraAdapter
from soma_agents.language.mixed_lora import MixedLora, PackedLora
from soma_agents.language.model import load_model
from soma_agents.language.requests import GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.language.scoring import bits_per_byte

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

TEXTS = [
    "Hello, world!",
    "The quick brown fox can't jump; it's 12345.67 meters (approx.) away.",
    "  leading and   several    spaces, tab\tand\n\nnew lines \r\n end  ",
    "naïve café, Straße, ÆØÅ, ĳ, ﬁ, e\u0301",
    "日本語のテキスト、한국어, 中文。العربية, עברית, ไทย, हिन्दी",
    "emoji 😀 👩‍🚀 🏳️‍🌈 👍🏽 and ©™",
    'def f(x):\n    return x**2  # 100%\n\tif (a && b) || !c { puts("ok") }',
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "'s 't 're 've 'm 'll 'd I'm you're THEY'LL",
    "\u200b\ufeff\u00a0\u3000zero width and wide spaces",
    "0 1 22 333 4444 1e-9 0xFF 3.14159",
    "a" * 300,
    "",
]
QUESTIONS = [
    "What is the capital of France?",
    "Write a short story about a fox and a river.",
    "My name is Ann and I live in Oslo. What do you know about me?",
]


@pytest.fixture(scope="module")
def reference(smollm2_path):
    """(model, tokenizer), read by transformers from the same file."""
    names = {"gguf_file": smollm2_path.name}
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path.parent, **names)
    model = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, dtype=torch.float32, **names
    ).eval()
    return model, tokenizer


def asked(model, question: str) -> tuple[int, ...]:
    messages = [ChatMessage(role="user", content=question)]
    return tuple(
        model.tokenizer.encode(model.tokenizer.render(messages, add_generation_prompt=True))
    )


async def continued(engine, prompt, *, adapter=None, max_tokens=64) -> list[int]:
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    request = GenerationRequest(prompt, sampling, adapter)
    return [
        token
        async for item in engine.generate(request)
        if isinstance(item, Piece)
        for token in item.token_ids
    ]


async def all_continued(engine, requests) -> list[list[int]]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(continued(engine, prompt, adapter=adapter, max_tokens=12))
            for prompt, adapter in requests
        ]
    return [task.result() for task in tasks]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_become_the_tokens_that_transformers_makes_of_them(smollm2_fp32, reference, text):
    _, tokenizer = reference

    ids = smollm2_fp32.tokenizer.encode(text)

    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert smollm2_fp32.tokenizer.decode(ids) == tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_conversations_are_rendered_as_transformers_renders_them(smollm2_fp32, reference):
    _, tokenizer = reference
    turns = [("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "Bye.")]
    messages = [ChatMessage(role=role, content=content) for role, content in turns]

    for start in (0, 1):
        ours = smollm2_fp32.tokenizer.render(messages[start:], add_generation_prompt=True)
        theirs = [{"role": role, "content": content} for role, content in turns[start:]]
        assert ours == tokenizer.apply_chat_template(
            theirs, tokenize=False, add_generation_prompt=True
        )


def test_logits_are_those_of_transformers(smollm2_fp32, reference):
    model, _ = reference
    prompts = torch.randint(0, 49152, (3, 64), generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        ours, theirs = smollm2_fp32.transformer(prompts), model(prompts).logits

    assert (ours - theirs).abs().max() <= 1e-3


async def test_greedy_text_is_that_of_transformers(smollm2_fp32, reference):
    model, _ = reference
    engine = Engine(smollm2_fp32, slots=4, threads=1)
    engine.start()

    for question in QUESTIONS[1:2]:
        prompt = asked(smollm2_fp32, question)
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=64,
        )[0, len(prompt) :].tolist()
        if theirs[-1] in smollm2_fp32.tokenizer.eos_ids:
            theirs.pop()
        assert await continued(engine, prompt, max_tokens=64) == theirs
    await engine.close()


def test_a_row_is_computed_bit_for_bit_the_same_in_any_company(smollm2_bf16, make_adapter):
    model = smollm2_bf16
    lora = PackedLora(make_adapter(model.config, 1), torch.bfloat16)
    rows = [lora, None, lora, None, lora, lora]
    prompts = [list(range(5, 25 + 20 * n)) for n in range(len(rows))]
    caches = [BatchCache(model.config, torch.bfloat16) for _ in range(len(rows) + 1)]
    decoder = Decoder(model)
    with torch.inference_mode():
        for row, tokens in enumerate(prompts):
            prompt = PromptCache(model.config, len(tokens), torch.bfloat16)
            decoder.read(tokens, prompt, rows[row])
            caches[row].join(prompt)
            caches[-1].join(prompt)
        new = [[100 + row] for row in range(len(rows))]

        together = decoder.step(new, caches[-1], MixedLora(rows))

        for row, adapter in enumerate(rows):
            alone = decoder.step([new[row]], caches[row], MixedLora([adapter]))
            assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
async def test_base_and_adapters_together_say_what_they_say_alone(
    request, make_adapter, tmp_path, dtype
):
    model = request.getfixturevalue(f"smollm2_{dtype}")
    engine = Engine(model, slots=8, threads=1)
    engine.start()
    for seed, name in enumerate("ab"):
        adapter = make_adapter(model.config, seed)
        with torch.no_grad():
            for up in adapter.b.values():
                up.mul_(2)  # so that each speaks differently
        adapter.save(tmp_path / name, model.id)
        await engine.load_adapter(name, tmp_path / name)
    requests = [(asked(model, q), adapter) for q in QUESTIONS[:2] for adapter in (None, "a", "b")]
    alone = [await all_continued(engine, [request]) for request in requests]

    together = await all_continued(engine, requests)

    assert [[tokens] for tokens in together] == alone
    assert len({str((alone[i], alone[i + 3])) for i in range(3)}) == 3
    await engine.close()


def test_peft_computes_the_same_with_our_adapter(smollm2_fp32, reference, make_adapter, tmp_path):
    from peft import PeftModel

    adapter: LoraAdapter = make_adapter(smollm2_fp32.config, 5)
    adapter.save(tmp_path, smollm2_fp32.id)
    prompt = torch.tensor([asked(smollm2_fp32, QUESTIONS[0])])

    theirs = PeftModel.from_pretrained(reference[0], tmp_path).eval()

    with torch.inference_mode():
        ours = smollm2_fp32.transformer(prompt, lora=adapter)
        assert torch.allclose(theirs(prompt).logits, ours, atol=5e-3)
    theirs.unload()


def test_sense_costs_fewer_bits_than_nonsense(smollm2_bf16):
    question = [ChatMessage(role="user", content=QUESTIONS[0])]

    sense, nonsense = bits_per_byte(
        smollm2_bf16,
        [(question, "The capital of France is Paris."), (question, "Blue sings xylophone 7.")],
    )

    assert sense < 0.5 < nonsense


def test_the_model_cut_off_is_refused(smollm2_path, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2_path.read_bytes()[:-1000])

    with pytest.raises(CorruptError, match="beyond the file"):
        load_model(str(cut))
