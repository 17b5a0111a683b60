"""The event files of a run against its log, read by the `tensorboard` package (pip install tensorboard).

    build/train_gpt --steps 40 --sample-every 10 --tensorboard --out runs/events
    python3 dev/reference/tensorboard_check.py runs/events

Compares every scalar with log.jsonl, step by step, and the samples with samples.jsonl; prints what it has compared, and
ends with status 1 at the first difference. Holds for resumed runs, too, whose events are in several files.
"""
import json
import math
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main(run):
    events = EventAccumulator(run, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    rows = [json.loads(line) for line in open(run + "/log.jsonl")]
    wanted = {"loss/train": "loss", "learning_rate": "lr", "gradient_norm": "grad_norm", "loss/validation": "val_loss"}
    for tag, key in wanted.items():
        log = {row["step"]: row[key] for row in rows if key in row}
        seen = {}
        for event in events.Scalars(tag):
            assert event.step not in seen, f"{tag}: step {event.step} twice"
            seen[event.step] = event.value
        assert seen.keys() == log.keys(), f"{tag}: steps {sorted(seen.keys() ^ log.keys())} are in one of the two"
        for step, value in log.items():
            same = math.isnan(seen[step]) if value is None else math.isclose(seen[step], value, rel_tol=1e-6, abs_tol=1e-30)
            assert same, f"{tag}: {seen[step]} at step {step}, {value} in the log"
        print(f"{tag}: {len(log)} values as in log.jsonl")
    samples = {row["step"]: row["text"] for row in map(json.loads, open(run + "/samples.jsonl"))}
    texts = {e.step: e.tensor_proto.string_val[0].decode("utf-8", "replace") for e in events.Tensors("sample")}
    assert texts.keys() == samples.keys(), f"samples of steps {sorted(texts.keys() ^ samples.keys())} are in one of the two"
    for step, text in samples.items():
        lines = [line[4:] for line in texts[step].split("\n")]
        if "[" not in text:  # where the log writes bytes that are no UTF-8 as [e2]
            assert "\n".join(lines) == text, f"the sample of step {step} differs"
    print(f"sample: {len(samples)} texts as in samples.jsonl")


if __name__ == "__main__":
    main(*sys.argv[1:])
