#!/usr/bin/env python3
"""What chat templates write, by Jinja itself in the environment that transformers gives it: test/golden/chat.json.

    chat_template.py [--check]      writes the file, or compares it

The first four templates are the engine's own (llmc/text/chat.c). The others say the same in other words, as published models do, or
are of no family that the engine knows.
"""
import json
import os
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "test", "golden", "chat.json")
END = "<|endoftext|>"

TEMPLATES = [
    ("plain", "plain", END, END,
     "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
     "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
     "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
     "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"),
    ("chatml", "chatml", END, END,
     "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    ("llama3", "llama3", "<|begin_of_text|>", "<|eot_id|>",
     "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
     "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"),
    ("zephyr", "zephyr", "<s>", "</s>",
     "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"),
    # a system message of its own
    ("chatml with a default", "chatml", END, "<|im_end|>",
     "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
     "{{ '<|im_start|>system\\nYou answer\\nin \\'short\\' words.<|im_end|>\\n' }}{% endif %}"
     "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    ("chatml in lines", "chatml", END, "<|im_end|>",
     "{%- if messages[0]['role'] == 'system' %}\n"
     "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
     "{%- else %}\n"
     "    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}\n"
     "{%- endif %}\n"
     "{%- for m in messages %}\n"
     "    {%- if m.role != 'system' %}\n"
     "        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\n"
     "    {%- endif %}\n"
     "{%- endfor %}\n"
     "{%- if add_generation_prompt %}\n"
     "    {{- '<|im_start|>assistant\\n' }}\n"
     "{%- endif %}\n"),
    ("llama3 with set", "llama3", "<|begin_of_text|>", "<|eot_id|>",
     "{% for m in messages %}{% set part = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' %}"
     "{% if loop.index0 == 0 %}{% set part = bos_token + part %}{% endif %}{{ part }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"),
    ("zephyr in lines", "zephyr", "<s>", "</s>",
     "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
     "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
     "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
     "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"),
    # of no family: they write more than messages and marks
    ("reasoning", None, END, "<|im_end|>",
     "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
     "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    ("a date", None, "<|begin_of_text|>", "<|eot_id|>",
     "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: ' + date | trim + '<|eot_id|>' }}"),
    ("chatml that trims", None, END, "<|im_end|>",
     "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"),
    ("other marks", None, "<s>", "</s>", "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"),
    ("another end", None, "<s>", "</s>", "{% for m in messages %}{{ '<|user|>\\n' + m['content'] + '<|end|>\\n<|assistant|>\\n' + eos_token }}{% endfor %}"),
]


def say(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [say("user", "Hello"), say("assistant", "Hi there.")],
    [say("system", "You are a\n\npoet. "), say("user", " What rhymes with blue?\n"), say("assistant", "Two, and\nshoe: \u00e4\u20ac."),
     say("user", "More!"), say("assistant", "Grew")],
    [say("user", "a <b> {{ c }} %}"), say("assistant", "x"), say("user", "")],
]


def rendered():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    out = []
    for name, family, bos, eos, text in TEMPLATES:
        case = {"name": name, "family": family, "bos": bos, "eos": eos, "jinja": text}
        if family:
            template = env.from_string(text)
            case["conversations"] = [
                {"messages": c, "text": template.render(messages=c, bos_token=bos, eos_token=eos, add_generation_prompt=False),
                 "prompt": template.render(messages=c, bos_token=bos, eos_token=eos, add_generation_prompt=True)} for c in CONVERSATIONS]
        out.append(case)
    return json.dumps(out, indent=1) + "\n"


def main():
    text = rendered()
    if "--check" not in sys.argv[1:]:
        open(GOLDEN, "w").write(text)
    elif open(GOLDEN).read() != text:
        sys.exit(f"{GOLDEN} differs from what Jinja writes")


main()
