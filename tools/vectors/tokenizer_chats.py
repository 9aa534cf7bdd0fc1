"""Chat templates of the common families, and the ids of conversations that they render."""

import json

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + "
    "messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    "
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    "
    '{%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
    '(message.role == "assistant" and not message.tool_calls) %}\n        '
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
    "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
QWEN3 = (
    "{%- set ns = namespace(last_query_index=messages|length - 1, open=true) %}\n"
    "{%- for message in messages[::-1] %}\n    "
    "{%- set index = (messages|length - 1) - loop.index0 %}\n    "
    '{%- if ns.open and message.role == "user" %}{%- set ns.open = false %}'
    "{%- set ns.last_query_index = index %}{%- endif %}\n{%- endfor %}\n"
    "{%- for message in messages %}\n    {%- set content = message.content %}\n    "
    "{%- if message.role == \"assistant\" %}\n        {%- set reasoning_content = '' %}\n"
    "        {%- if '</think>' in content %}\n            {%- set reasoning_content = "
    "content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
    "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {%- endif %}\n        {{- '<|im_start|>' + message.role + '\\n' + content }}\n"
    "        {{- '<|im_end|>\\n' }}\n    {%- else %}\n        "
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
    "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA31_CHAT = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    "
    '{%- set date_string = "26 Jul 2024" %}\n{%- endif %}\n'
    "{%- if messages[0]['role'] == 'system' %}\n    "
    "{%- set system_message = messages[0]['content']|trim %}\n    "
    "{%- set messages = messages[1:] %}\n{%- else %}\n    "
    '{%- set system_message = "" %}\n{%- endif %}\n'
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n{{- system_message }}\n'
    '{{- "<|eot_id|>" }}\n{%- for message in messages %}\n        '
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
    "message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    "
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}"
    "{% endfor %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + "
    "message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
PHI3_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'system' and "
    "message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}"
    "{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}"
    "{% endif %}"
)
ZEPHYR_CHAT = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n"
    "{% endif %}\n{% endfor %}"
)
MINICPM_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{'<用户>' + message['content'].strip() + '<AI>'}}{% else %}"
    "{{message['content'].strip()}}{% endif %}{% endfor %}"
)

CHATS = [  # template, tokenizer, bos, eos, accepts a system message
    (CHATML, "minicpm", "<s>", "</s>", True),
    (SMOLLM2, "smollm", None, "<|im_end|>", True),
    (QWEN25, "qwen", None, "<|im_end|>", True),
    (QWEN3, "qwen", None, "<|im_end|>", True),
    (LLAMA3_CHAT, "llama3", "<|begin_of_text|>", "<|eot_id|>", True),
    (LLAMA31_CHAT, "llama3", "<|begin_of_text|>", "<|eot_id|>", True),
    (LLAMA2_CHAT, "minicpm", "<s>", "</s>", True),
    (MISTRAL_CHAT, "metaspace", "<s>", "</s>", False),
    (GEMMA_CHAT, "gemma", "<bos>", "<eos>", False),
    (PHI3_CHAT, "minicpm", "<s>", "</s>", True),
    (ZEPHYR_CHAT, "metaspace", "<s>", "</s>", True),
    (MINICPM_CHAT, "metaspace", "<s>", "</s>", None),
]


def write_chats(tokenizers, pack, path):
    """`pack` turns ids into text."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda m: (_ for _ in ()).throw(
        jinja2.TemplateError(m)
    )
    user = "What is  the capital of France?\nTell me, please. "
    turns = [
        [("user", user)],
        [("user", "  Hi \t\n"), ("assistant", " Hello! \n"), ("user", "Größe 12 中 👍🏽?")],
        [("user", ""), ("assistant", "<think>\nhm\n</think>\n\nYes"), ("user", "\n\nx")],
    ]
    systems = [[("system", " Be brief. ")] + t for t in turns] + [[("system", "")] + turns[0]]
    with open(path, "w", encoding="utf-8") as out:
        for template, name, bos, eos, system in CHATS:
            out.write(
                json.dumps(
                    {"tokenizer": name, "template": template, "bos": bos, "eos": eos},
                    ensure_ascii=False,
                )
                + "\n"
            )
            compiled = environment.from_string(template)
            for messages in turns + (systems if system else []):
                for generate in (True, False):
                    items = [{"role": r, "content": c} for r, c in messages]
                    text = compiled.render(
                        messages=items,
                        add_generation_prompt=generate,
                        bos_token=bos or "",
                        eos_token=eos,
                    )
                    ids = tokenizers[name].encode(text, add_special_tokens=False).ids
                    out.write(
                        json.dumps(
                            {"generate": generate, "messages": messages, "ids": pack(ids)},
                            ensure_ascii=False,
                        )
                        + "\n"
                    )
