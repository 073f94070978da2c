import sys; from pathlib import Path; sys.path.insert(0,str(Path(__file__).parent))
from edit_cells import edit
edit(sys.argv[1],[
(1,"import inspect\nimport time","import time"),
(1,"from mixofshow_lite import course\n","from mixofshow_lite import course, tuning\n"),
(4,"""The base was trained on plain animals and things in eight colours or so, some of them wearing a scarf or a hat. Our concepts
come in two kinds.""","""The base was trained on plain animals and things in ten colours and the shades between them, some of them wearing a scarf or a hat.
Our concepts come in two kinds."""),
(4,"No rabbit of its world has stripes *and* a horn.","No animal of its world has stripes, or a horn."),
(6,"""The three out-domain ones are **look-alikes**: all rabbits, so they share their class word and most of their prompt. They are
what this course is about, because look-alikes are what fusing mixes up.""","""The three out-domain ones are **look-alikes**: all of them white rabbits, so they share their class word, their colour and most of
their prompt; only their marks tell them apart. They are what this course is about, because look-alikes are what fusing mixes up."""),
(7,"photo of a white rabbit wearing a purple crown","photo of a white rabbit wearing a yellow hat"),
(12,"""One loop serves all recipes: draw a few of the client's pictures, noise them, guess the noise with the concept's words in the
prompt, step. Here is the heart of it; the library is the answer key.""","""One loop serves all recipes: draw a few of the client's pictures, noise them, guess the noise with the concept's words in the
prompt, step. Here it is in two functions: the loss of one batch, and the loop, a generator that hands out its state after each step. `mos.tune`,
which we call below, is the same loop with what a long run needs around it: checkpoints, several GPUs, mixed precision."""),
(13,open('/dev/stdin').read() if False else '''source = inspect.getsource(mos.tune).splitlines()
start = next(i for i, line in enumerate(source) if "for step in range" in line)
end = next(i for i, line in enumerate(source) if "optimizer.step()" in line)
print("\\n".join(line[8:] for line in source[start : end + 1]))''',"course.show_source(tuning.tuning_loss, tuning.tuning_steps)"),
(16,'left.plot(np.convolve(loss, np.ones(15) / 15, "valid"), label="mean of 15 steps")','left.plot(range(7, steps - 7), np.convolve(loss, np.ones(15) / 15, "valid"), label="mean of 15 steps")'),
(22,'''    print(study.verdict())''','''    for words, found in study.differences.items():
        print(found, " ", words)
    print(study.verdict())'''),
(23,"Read the three lines with care. LoRA is ahead","Read the last three lines with care. On pocket-v1, LoRA is ahead"),
(23,"narrow verdict (0.05 is the lower end of its interval).","narrow verdict (0.047 is the lower end of its interval)."),
(25,"bring","bring") if False else (25,"## 5. Observation 2: where does the identity sit?\n\nWhen words *and* LoRA are tuned together, either could do the work. The dial alpha takes them apart again: (Phi_0 + alpha dPhi)(P*).",
"## 5. Observation 2: where does the identity sit?\n\nWhen words *and* LoRA are tuned together, either could do the work. The dial alpha takes them apart again: (Phi_0 + alpha dPhi)(P*), where P* is the\nprompt with the concept's words in it."),
(33,"""The paper's claim is about the columns at alpha = 0: plain LoRA leaves little of an identity there, ED-LoRA more. Look at kiki. LoRA's word alone draws""",
"""The paper's claim is about the columns at alpha = 0: plain LoRA leaves little of an identity there, ED-LoRA more. This study is of pocket-v1, where the three rabbits differed in
colour too: bibi white, momo yellow, kiki blue. Look at kiki. LoRA's word alone draws"""),
(33,"""Our recipes stop them
at 1.7, where the model's own words are about 0.9 long.""","""Our recipes `lora` and `ed_lora`
stop them at about 1.75 (1.7 on pocket-v1), where the model's own words are about 0.9 long; the others have no limit."""),
(35,"Without a limit plain LoRA's word","On pocket-v1, without a limit plain LoRA's word"),
(35,"(Length itself matters little: Textual Inversion at three learning rates ends with words of length 1.5, 2.2 and 4.1 for mochi, of nearly one direction, and their pictures are equally like her. The limit is a clock.)",
"(What the limit does is to end the training of the words early: it says for how long they are trained rather than how long they may be.)"),
])
edit(sys.argv[1],[
(1,"from mixofshow_lite.engine.evaluation import image_scores\n","from mixofshow_lite.engine.evaluation import image_scores\nfrom mixofshow_lite.engine.resume import kept\n"),
(1,"import inspect\n","") if False else (28,'''recipes = [r for r in ("lora", "ed_lora") if all((kit.tuned / f"{n}-{r}-0").is_dir() for n in names)] or ["ed_lora"]''',
'''recipes = [r for r in ("lora", "ed_lora") if all(kept(kit.tuned / f"{n}-{r}-0", base) for n in names)] or ["ed_lora"]'''),
])
