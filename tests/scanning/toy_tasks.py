"""Task files for lm-evaluation-harness, with their data, in a folder."""

import json

FACTS = [
    ("France", "Paris"), ("Italy", "Rome"), ("Norway", "Oslo"), ("Spain", "Madrid"),
    ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Peru", "Lima"), ("Greece", "Athens"),
]  # fmt: skip
CHOSEN = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {examples}}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "<|im_start|>user\\n{{{{question}}}}<|im_end|>\\n<|im_start|>assistant\\n"
doc_to_target: said
generation_kwargs: {{until: ["<|im_end|>"], do_sample: false, max_gen_toks: 12}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
CLOZE = """
task: cloze
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_target: " {{{{capital}}}}."
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
GROUP = """
group: both
task: [capitals, written]
"""


def documents():
    """Questions with three choices each, of several lengths."""
    found = []
    for number, (country, capital) in enumerate(FACTS):
        wrong = [FACTS[number - 1][1], f"the town of {FACTS[number - 2][1]}"]
        answer = number % 3
        choices = [*wrong[:answer], capital, *wrong[answer:]]
        said = f"The capital of {country} is {capital}."
        question = f"What is the capital of {country}?"
        found.append(
            {"country": country, "capital": capital, "question": question, "choices": choices}
            | {"answer": answer, "said": said}
        )
    return found


def write_tasks(folder):
    """Write the files, and the documents that they read."""
    written = documents()
    for name, some in {"data": written, "examples": list(reversed(written))}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in some))
    for text in (CHOSEN, WRITTEN, CLOZE, GROUP):
        write_task(folder, text)


def write_task(folder, text):
    """Write one file, named as its task; it reads the documents of the folder."""
    text = text.lstrip().format(data=folder / "data.jsonl", examples=folder / "examples.jsonl")
    name = text.split("\n", 1)[0].split(": ")[1]
    (folder / f"{name}.yaml").write_text(text)
    return folder / f"{name}.yaml"
