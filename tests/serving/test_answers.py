"""What the server answers, asked by OpenAI's own client, beside what transformers says of the same model."""

import collections
import shutil
import subprocess
import urllib.request

import pytest
import torch

import restack
from restack import recipes
from tests.serving.running import DEEPER

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


@pytest.fixture(scope="module")
def base():
    return recipes.open("demo", dtype="float32")


@pytest.fixture(scope="module")
def tokenizer():
    return recipes.open_tokenizer("demo")


def greedy(model, tokenizer, text, tokens, special=False):
    """What transformers' own `generate` writes after a text: the new token ids."""
    ids = tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
    written = model.generate(ids, do_sample=False, max_new_tokens=tokens)
    return ids, written[0, ids.shape[1] :]


def asked(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "plan"),
    [("demo", None), ("deeper", DEEPER), ("demo@0:10,6:12", "0:10,6:12"), ("deeper@0:4,8:16", "0:4,4:12")],
)
def test_every_plan_answers_as_transformers_does(server, base, tokenizer, name, plan):
    model = base if plan is None else restack.materialise(base, plan)
    _, tokens = greedy(model, tokenizer, asked(tokenizer, QUESTION), 24)
    expected = tokenizer.decode(tokens, skip_special_tokens=True)
    answer = server.openai.chat.completions.create(
        model=name, messages=QUESTION, temperature=0, max_tokens=24
    )
    assert answer.choices[0].message.content == expected
    assert answer.model == name
    stream = server.openai.chat.completions.create(
        model=name,
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert last.usage.completion_tokens == answer.usage.completion_tokens


def test_completions_of_several_prompts(server, base, tokenizer):
    prompts = ["Q: What is 2 + 2? A:", "Once upon a time"]
    answer = server.openai.completions.create(model="demo", prompt=prompts, temperature=0, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        ids, tokens = greedy(base, tokenizer, prompt, 12, special=True)
        whole = tokenizer.decode([*ids[0], *tokens], skip_special_tokens=True)
        assert whole.endswith(choice.text)
    by_ids = tokenizer(prompts)["input_ids"]
    again = server.openai.completions.create(model="demo", prompt=by_ids, temperature=0, max_tokens=12)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_log_probabilities_are_those_of_the_model(server, base, tokenizer):
    answer = server.openai.chat.completions.create(
        model="deeper",
        messages=QUESTION,
        temperature=1.5,
        seed=3,
        max_tokens=8,
        logprobs=True,
        top_logprobs=5,
        extra_body={"ignore_eos": True},
    )
    scores = answer.choices[0].logprobs.content
    assert "".join(score.token for score in scores) == answer.choices[0].message.content
    ids = tokenizer(asked(tokenizer, QUESTION), add_special_tokens=False)["input_ids"]
    model = restack.materialise(base, DEEPER)
    for score in scores:
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)
        values, tokens = logs.topk(5)
        assert [each.token for each in score.top_logprobs] == [tokenizer.decode([t]) for t in tokens.tolist()]
        assert [each.logprob for each in score.top_logprobs] == pytest.approx(values.tolist(), abs=1e-3)
        drawn = [t for t in range(len(logs)) if tokenizer.decode([t]) == score.token]
        assert min(abs(float(logs[t]) - score.logprob) for t in drawn) < 1e-3
        ids.append(min(drawn, key=lambda t: abs(float(logs[t]) - score.logprob)))


def test_seeds_and_choices(server):
    def choices(seed, n=3):
        answer = server.openai.chat.completions.create(
            model="demo", messages=QUESTION, temperature=1.8, seed=seed, n=n, max_tokens=16
        )
        return [choice.message.content for choice in answer.choices]

    first = choices(7)
    assert choices(7) == first
    assert len(set(first)) > 1
    assert choices(8)[:2] == first[1:]  # each choice has the seed after the one before
    assert choices(9, n=1) == first[2:]


def test_penalties(server, base, tokenizer):
    """Against a loop of our own over transformers' forward: presence once, frequency each time."""
    prompt = "Once upon a time"
    ids = tokenizer(prompt)["input_ids"]
    counts, text = collections.Counter(), []
    for _ in range(20):
        with torch.no_grad():
            logits = base(torch.tensor([[*ids, *text]])).logits[0, -1]
        for token, count in counts.items():
            logits[token] -= 1.2 * count + 0.9
        text.append(int(logits.argmax()))
        counts[text[-1]] += 1
    answer = server.openai.completions.create(
        model="demo",
        prompt=prompt,
        temperature=0,
        max_tokens=20,
        frequency_penalty=1.2,
        presence_penalty=0.9,
        extra_body={"ignore_eos": True},
    )
    assert tokenizer.decode([*ids, *text], skip_special_tokens=True).endswith(answer.choices[0].text)
    assert answer.usage.completion_tokens == 20


def test_bias_forces_and_forbids(server, tokenizer):
    token = tokenizer("boat", add_special_tokens=False)["input_ids"][-1]
    answer = server.openai.completions.create(
        model="demo", prompt="Once", temperature=0, max_tokens=3, logit_bias={str(token): 100}
    )
    assert answer.choices[0].text == tokenizer.decode([token] * 3)


def test_stop_strings_and_limits(server):
    def ask(**options):
        answer = server.openai.completions.create(
            model="demo", prompt="Once upon a time", temperature=0, extra_body={"ignore_eos": True}, **options
        )
        return answer.choices[0]

    whole = ask(max_tokens=30)
    assert whole.finish_reason == "length"
    words = whole.text.split()
    stopped = ask(max_tokens=30, stop=[words[4]])
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(words[4])]


def test_the_last_message_of_the_assistant_is_gone_on_with(server):
    begun = "The answer"
    answer = server.openai.chat.completions.create(
        model="demo",
        messages=[*QUESTION, {"role": "assistant", "content": begun}],
        temperature=0,
        max_tokens=16,
    )
    restarted = server.openai.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, max_tokens=16
    )
    assert answer.usage.prompt_tokens > restarted.usage.prompt_tokens
    assert not answer.choices[0].message.content.startswith(begun)


def test_a_conversation_reads_only_what_is_new(server):
    first = server.openai.chat.completions.create(
        model="deeper", messages=QUESTION, temperature=0, max_tokens=16
    )
    messages = [
        *QUESTION,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "What is 5 + 6?"},
    ]
    second = server.openai.chat.completions.create(
        model="deeper", messages=messages, temperature=0, max_tokens=16
    )
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_models(server):
    assert [model.id for model in server.openai.models.list()] == ["demo", "deeper", "shallow"]
    assert server.openai.models.retrieve("demo@0:4").id == "demo@0:4"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server):
    body = '{"model": "deeper", "stream": true, "messages": [{"role": "user", "content": "What is 3 + 4?"}]}'
    done = subprocess.run(
        [
            "curl",
            "-sN",
            f"{server.url}/v1/chat/completions",
            "-H",
            "content-type: application/json",
            "-d",
            body,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    events = done.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_health_and_metrics(server):
    asked = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    assert server.post("/v1/chat/completions", asked)[0] == 200
    assert '"status":"ok"' in server.get("/health")
    told = server.get("/metrics")
    assert "restack_answer_tokens_total" in told
    assert 'restack_requests_total{path="/v1/chat/completions",status="200"}' in told


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models"])
def test_head_is_get_without_the_body(server, path):
    request = urllib.request.Request(server.url + path, method="HEAD")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
        assert answer.read() == b""
        assert int(answer.headers["content-length"]) > 0
