"""Compares `train_gpt eval` with an independent implementation: transformers in float64, Python's json and csv modules,
Hugging Face tokenizers. Makes a random GPT-2 with its tokenizer, tasks in three formats of multiple choice and in that
of LAMBADA, a text, conversations and a token shard, runs the program on them and compares the score of every choice,
what greedy decoding writes, every accuracy, the perplexities, the losses and the bits per byte:

    eval_reference.py build/train_gpt WORK_DIRECTORY

The exit status is 0 if everything agrees.
"""
import csv
import io
import json
import math
import os
import random
import re
import struct
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # only local directories, ever

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

transformers.utils.logging.disable_progress_bar()
CONTEXT, VOCAB, END = 96, 500, "<|endoftext|>"
WORDS = ("the a cat dog house river said went over under quickly blue green of and to in was is it Zürich naïve don't "
         "1984 42 日本 🙂 \"quoted\" semi;colon comma, tab").split(" ")

# --- inputs ---


def sentence(r, low, high):
    return " ".join(r.choice(WORDS) for _ in range(r.randint(low, high)))


def make_model(directory, r):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([sentence(r, 5, 30) for _ in range(2000)], trainer)
    vocab = tokenizer.get_vocab_size()
    torch.manual_seed(1)
    config = transformers.GPT2Config(n_layer=3, n_head=4, n_embd=32, vocab_size=vocab, n_positions=CONTEXT,
                                     bos_token_id=tokenizer.token_to_id(END), eos_token_id=tokenizer.token_to_id(END))
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():  # weights large enough that choices differ
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1.0 if "ln_" in name and name.endswith("weight") else 0.0))
    model.save_pretrained(directory)
    tokenizer.save(os.path.join(directory, "tokenizer.json"))
    return tokenizer


def make_tasks(directory, r):
    paths = [os.path.join(directory, name) for name in ("hellaswag.jsonl", "world_religions_test.csv", "own.jsonl", "header.csv")]
    with open(paths[0], "w", encoding="utf-8") as f:
        for i in range(60):
            row = {"ind": i, "activity_label": "x", "ctx": sentence(r, 3, 60 if i % 5 == 0 else 20),
                   "endings": [sentence(r, 1, 12) for _ in range(4)], "label": r.choice([0, 1, 2, 3, "0", "3"])}
            f.write(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n")
    for path in (paths[1], paths[3]):
        with open(path, "w", encoding="utf-8", newline="") as f:
            w = csv.writer(f, lineterminator="\r\n" if path == paths[1] else "\n")
            if path == paths[3]:
                w.writerow(["question", "A", "B", "C", "D", "answer"])
            for i in range(40):
                question = sentence(r, 3, 15) + ("\nsecond line, with a comma\n\n" if i % 3 == 0 else "?")
                w.writerow([question] + [sentence(r, 1, 3) for _ in range(4)] + [r.choice("ABCD")])
    with open(paths[2], "w", encoding="utf-8") as f:
        for i in range(60):
            choices = list(dict.fromkeys(sentence(r, 1, 6) for _ in range(r.randint(2, 6))))
            choices += ["last"] if len(choices) < 2 else []
            context = ["", "Q: " + sentence(r, 2, 9) + "\n", sentence(r, 1, 9), sentence(r, 2, 9) + " "][i % 4]
            if i % 7 == 0:
                choices = [("\t" if k else " ") + c for k, c in enumerate(choices)]
            answer = r.randrange(len(choices))
            f.write(json.dumps({"context": context, "choices": choices, "answer": choices[answer] if i % 2 else answer}) + "\n")
    return paths


def make_lambada(directory, model, tokenizer, r):
    """Texts whose last word is by turns a random one, and what the model writes after the words before it."""
    path, rows, tries = os.path.join(directory, "lambada.jsonl"), [], 0
    while len(rows) < 60 and tries < 20000:
        tries += 1
        context = sentence(r, 3, 30)
        word = " " + r.choice(WORDS).strip()
        if len(rows) % 2:
            ids, made = tokenizer.encode(context).ids, []
            for _ in range(1 + len(rows) // 2 % 3):
                with torch.no_grad():
                    made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
            word = tokenizer.decode(made)
            if not re.fullmatch(r" [^\s\ufffd]+", word) or tokenizer.encode(word).ids != made:
                continue
        rows.append({"text": context + word})
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def make_data(directory, tokenizer, r):
    documents = [sentence(r, 5, 150) for _ in range(40)]
    text = os.path.join(directory, "some.txt")
    with open(text, "w", encoding="utf-8", newline="") as f:
        f.write(f"\n{END}\n".join(documents))
    ids = [tokenizer.token_to_id(END)]
    for d in documents:
        ids += tokenizer.encode(d).ids + [tokenizer.token_to_id(END)]
    shard = os.path.join(directory, "val.bin")
    with open(shard, "wb") as f:
        f.write(struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253) + struct.pack(f"<{len(ids)}H", *ids))
    return text, documents, shard, ids


# --- scores of tasks ---


def read_task(path):
    """(context, choices as appended, choices as written, answer) of every question."""
    text = io.open(path, encoding="utf-8", newline="").read()
    if path.endswith(".csv"):
        subject = re.sub("_(test|dev|val)$", "", os.path.basename(path)[:-4]).replace("_", " ")
        for row in csv.reader(io.StringIO(text, newline="")):
            if row[0] == "question":
                continue
            shown = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row[1:5]))
            yield (f"The following are multiple choice questions (with answers) about {subject}.\n\n{row[0]}\n{shown}Answer:",
                   [" A", " B", " C", " D"], list("ABCD"), "ABCD".index(row[5]))
        return
    for line in text.split("\n"):
        if not line:
            continue
        row = json.loads(line)
        if "ctx" in row:
            yield row["ctx"], [" " + e for e in row["endings"]], row["endings"], int(row["label"])
            continue
        context, choices, answer = row["context"], row["choices"], row["answer"]
        joined = [c if not context or context[-1].isspace() or c[0].isspace() else " " + c for c in choices]
        yield context, joined, choices, choices.index(answer) if isinstance(answer, str) else answer


def logits_before(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids[:-1]])).logits[0].double()


def log_probabilities(model, ids):
    """Log-probability of each token after the first, given those before it."""
    return torch.log_softmax(logits_before(model, ids), -1)[range(len(ids) - 1), ids[1:]].tolist()


def score_lambada(model, tokenizer, path):
    """As lambada_openai of lm-evaluation-harness: (log-probability of the last word, is it what greedy decoding writes)."""
    for line in open(path, encoding="utf-8"):
        text = json.loads(line)["text"]
        context, word = " ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]
        whole = tokenizer.encode(context + word).ids
        n = len(whole) - len(tokenizer.encode(context).ids)
        logits = logits_before(model, whole[-(CONTEXT + 1):])
        scores = torch.log_softmax(logits, -1)[-n:, :]
        yield sum(scores[i, t].item() for i, t in enumerate(whole[-n:])), scores.argmax(-1).tolist() == whole[-n:]


def compare_lambada(program, directory, model, tokenizer, path, details):
    expected = list(score_lambada(model, tokenizer, path))
    summary = os.path.join(directory, "lambada.json")
    out = subprocess.run([program, "eval", "--from", directory, "--device", "cpu", "--tasks", path, "--details", details,
                          "--json", summary, "--overwrite"], check=True, capture_output=True, text=True).stdout
    print(out)
    rows, task = [json.loads(line) for line in open(details, encoding="utf-8")], json.load(open(summary))["tasks"][0]
    right = sum(greedy for _, greedy in expected) / len(expected)
    perplexity = math.exp(-sum(s for s, _ in expected) / len(expected))
    compare("lambada scores", [row["scores"][0] for row in rows], [s for s, _ in expected], 2e-5)
    compare("lambada greedy", [row["greedy"] for row in rows], [g for _, g in expected], 0)
    compare("lambada accuracy and perplexity", [task["acc"], task["perplexity"]], [right, perplexity], 1e-5)
    m = re.search(r"([0-9.]+) % \+-.*perplexity ([0-9.]+)", out)
    compare("lambada printed", [float(x) for x in m.groups()], [100 * right, perplexity], 6e-3)


def score_task(model, tokenizer, path):
    encode = lambda s: tokenizer.encode(s).ids
    scores, right = [], [0, 0, 0]
    for context, joined, written, answer in read_task(path):
        ahead = encode(context) or [tokenizer.token_to_id(END)]
        score, tokens = [], []
        for choice in joined:
            ids = encode(choice)
            p = log_probabilities(model, (ahead + ids)[-(CONTEXT + 1):])
            score.append(sum(p[-len(ids):]))
            tokens.append(min(len(ids), CONTEXT))
        scores.append((answer, score, tokens))
        lengths = [[1] * len(joined), tokens, [len(w.removeprefix(" ")) for w in written]]
        for i, length in enumerate(lengths):
            normalised = [s / n for s, n in zip(score, length)]
            right[i] += normalised.index(max(normalised)) == answer
    return scores, [n / len(scores) for n in right]


# --- losses ---


def loss_of_windows(model, ids):
    total = []
    for first in range(0, len(ids) - 1, CONTEXT):
        total += [-p for p in log_probabilities(model, ids[first:first + CONTEXT + 1])]
    return total


def loss_of_documents(model, tokenizer, documents):
    """Loss of each token given its document so far. A row holds whole documents; longer ones are cut into rows."""
    end, total = tokenizer.token_to_id(END), []
    rows, row = [], [end]
    for d in documents:
        ids = tokenizer.encode(d).ids + [end]
        if len(row) + len(ids) > CONTEXT + 1 and len(row) > 1:
            rows.append(row)
            row = [end]
        while len(row) + len(ids) > CONTEXT + 1:
            room = CONTEXT + 1 - len(row)
            rows.append(row + ids[:room])
            row, ids = [ids[room - 1]], ids[room:]
        row = row + ids
    for row in rows + [row]:
        if len(row) > 1:
            total += [-p for p in log_probabilities(model, row)]
    return total


def loss_of_chats(model, tokenizer, path):
    """Loss of what the assistant says and of the end of its turns, in the plain template; and the bytes of its words."""
    end, total, size = tokenizer.token_to_id(END), [], 0
    for line in open(path, encoding="utf-8"):
        ids, learned = [end], [False]
        for m in json.loads(line)["messages"]:
            head = {"system": "System:\n", "user": "User:\n", "assistant": "Assistant:\n"}[m["role"]]
            if m["role"] != "assistant":
                given = tokenizer.encode(head + m["content"] + "\n\n").ids
                ids, learned = ids + given, learned + [False] * len(given)
                continue
            given, said = tokenizer.encode(head).ids, tokenizer.encode(m["content"]).ids + [end]
            ids, learned = ids + given + said, learned + [False] * len(given) + [True] * len(said)
            size += len(m["content"].encode())
        total += [-p for p, l in zip(log_probabilities(model, ids), learned[1:]) if l]
    return total, size


# --- comparison ---

failed = False


def compare(what, found, expected, tolerance):
    global failed
    worst = max(abs(f - e) / max(1.0, abs(e)) for f, e in zip(found, expected))
    ok = len(found) == len(expected) and worst <= tolerance
    failed |= not ok
    print(f"{what}: {len(expected)} compared, largest difference {worst:.2e} (allowed {tolerance:.0e}): {'ok' if ok else 'FAIL'}")


def main():
    program, directory = sys.argv[1:]
    os.makedirs(directory, exist_ok=True)
    r = random.Random(7)
    tokenizer = make_model(directory, r)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, local_files_only=True).eval()
    tasks = make_tasks(directory, r)
    details = os.path.join(directory, "details.jsonl")
    run = lambda *a: subprocess.run([program, "eval", "--from", directory, "--device", "cpu", *a], check=True, capture_output=True, text=True)
    out = run("--tasks", ",".join(tasks), "--details", details)
    sys.stderr.write(out.stderr)
    print(out.stdout)
    rows = [json.loads(line) for line in open(details, encoding="utf-8")]
    for path in tasks:
        name = os.path.basename(path)
        scores, shares = score_task(model, tokenizer, path)
        found = [row for row in rows if row["task"] == name]
        compare(f"{name} answers", [row["answer"] for row in found], [a for a, _, _ in scores], 0)
        compare(f"{name} tokens", sum([row["tokens"] for row in found], []), sum([t for _, _, t in scores], []), 0)
        compare(f"{name} scores", sum([row["scores"] for row in found], []), sum([s for _, s, _ in scores], []), 2e-5)
        line = next(l for l in out.stdout.splitlines() if l.startswith(name + " "))
        shown = [float(x) / 100 for x in re.findall(r"([0-9.]+) %", line)][:3]
        compare(f"{name} shares", shown, shares, 6e-5)
    compare_lambada(program, directory, model, tokenizer, make_lambada(directory, model, tokenizer, r), details)
    text, documents, shard, ids = make_data(directory, tokenizer, r)
    bytes_of_text = sum(len(d.encode()) for d in documents)
    chats = os.path.join(directory, "chats.jsonl")
    with open(chats, "w", encoding="utf-8") as f:
        for i in range(30):
            messages = [{"role": "system", "content": sentence(r, 1, 4)}] if i % 3 == 0 else []
            messages += [{"role": role, "content": sentence(r, 1, 4)} for role in ("user", "assistant") * (1 + i % 2)]
            f.write(json.dumps({"messages": messages}) + "\n")
    chat_losses, chat_bytes = loss_of_chats(model, tokenizer, chats)
    for what, arguments, losses, size in (
            ("shard", ("--data", shard), loss_of_windows(model, ids), bytes_of_text),
            ("text", ("--text", text), loss_of_documents(model, tokenizer, documents), bytes_of_text),
            ("chat", ("--chat", chats), chat_losses, chat_bytes)):
        line = run(*arguments).stdout
        print(line, end="")
        m = re.search(r"loss ([0-9.]+) nats per token over (\d+) tokens, perplexity ([0-9.]+), ([0-9.]+) bits", line)
        mean = sum(losses) / len(losses)
        compare(what, [float(x) for x in m.groups()],
                [mean, len(losses), math.exp(mean), sum(losses) / math.log(2) / size], 6e-5)
    sys.exit(failed)


if __name__ == "__main__":
    main()
