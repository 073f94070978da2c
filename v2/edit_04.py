import sys; from pathlib import Path; sys.path.insert(0,str(Path(__file__).parent))
from edit_cells import edit
edit(sys.argv[1],[
(3,"Three rabbits that look much alike, each tuned by its own client as an ED-LoRA (notebook 03).","Three white rabbits that only their marks tell apart, each tuned by its own client as an ED-LoRA (notebook 03): bibi has purple stripes and a golden horn, momo brown spots and an\neyepatch, kiki blue checks and pink wings."),
(3,"Every column is one seed; the\nfour rows are four models: each rabbit's own, the average of the three, and the gradient fusion of the three.","Every column is one seed; under a client's own pictures stand three kinds of\nmodel: each rabbit's own, the average of the three, and the gradient fusion of the three."),
(6,"Keep this picture in mind: what follows is why the last two rows differ, by how much, and what decides it.",
"""We see that already each one's own model brings only a part of its marks: purple on bibi, dark red patches on momo, blue and once the pink wings on kiki, and no horn. So there is less to lose here than
with longer tuning. The average loses most of it: its momo is a plain white rabbit. Gradient fusion gives back a little purple and blue, and not the wings. What follows is why the last two rows
differ, by how much, and what decides it."""),
(18,"draws the prompts; as in the paper, no guidance.","draws the prompts; no guidance, as in the official code."),
(20,"The spatial layer sees the pixels of the picture, and there a yellow rabbit and a blue one differ everywhere.","The spatial layer sees the pixels of the picture, and there the rabbits and what is around them differ."),
(23,"""Read each panel from left (hardly fitted) to right (fitted exactly), blue first: on the recorded inputs, fitting harder can only help. Then red. Where red turns up again, the layer has
begun to learn the recording instead of the concept. Now compare the first two columns: a different solver, another axis, the same story. The third column starts at the averaging line instead
of at 1, because where the recordings are silent it does what averaging does.""",
"""The horizontal axis is the ridge, falling, or the number of iterations. Read each panel from left (hardly fitted) to right (fitted exactly), blue first: on the recorded inputs the last stop is
the best one. The way there need not go down at every step: LBFGS lowers the sum of the three squared losses, in which a strong update counts most, while the curve is the mean of the three shares, and for the keys that
rises in the first steps. Then red. Where red turns up again, the layer has begun to learn the recording instead of the concept: the ridges do for the keys below 0.001, and all three paths a little for the spatial layer.
For the keys 500 iterations are not yet too many: red is still as low as it gets. The third column starts near the averaging line, because where the recordings are silent it does what averaging does. For the
keys that line stands at 1.4, which is worse than leaving out the updates altogether (1): each concept gets the changes of the other two."""),
(25,"Why do both behave alike?","Why do ridge and early stopping behave so much alike?"),
(30,"""The two verdicts are those of *this* model, these three concepts and four pictures each, printed whatever they are. Read the table in two directions. Downwards: how much of the way from "each alone" does a fusion
give up? Sideways: a concept that is nearest to the right rabbit even under averaging has an identity that sits in its words, where no fusion can touch it (Observation 2 in notebook 02).""",
"""The two verdicts are those of *this* model, these three concepts and four pictures each, printed whatever they are. Read the table in two directions. Downwards: how much of the way from "each alone" does a fusion
give up? Here averaging loses 0.15 of image-alignment and gradient fusion 0.12: it is ahead, by little. Sideways: a concept that is nearest to the right rabbit even under averaging can have an identity that sits in its
words, where no fusion can touch it (Observation 2 in notebook 02). Look at its picture before you believe that: momo is identified always, also where the picture above shows no spot at all.
A white rabbit without marks is perhaps nearest to momo."""),
(31,"The library's own study draws more of them and also fuses plain LoRAs","The library's own study, measured on pocket-v1, draws more of them and also fuses plain LoRAs"),
(33,"And the choice of the ridge: every way to fuse, for this group","And the choice of the ridge, on pocket-v1: every way to fuse, for this group"),
(35,"Up is better, left is better;","On pocket-v1: up is better, left is better;"),
(38,"We see that averaging loses 0.1","We see that on pocket-v1 averaging loses 0.1"),
(39,"on the same places as the ridges:","on the same places as the ridges and on pocket-v1 too:"),
(41,"The rabbits' model moves twice as far.","The rabbits' model moves 1.7 times as far."),
(43,"## 6. A playground\n","We see that gradient fusion moves other prompts twice as far as averaging here (0.24 and 0.12): what it gives back to the concepts is not free.\n\n## 6. A playground\n"),
(47,"Read it row by row: the first column is what each client was promised.",
"""Read it row by row: the first column is what each client was promised. The *plain sum* destroys the pictures: each concept's input meets all three changes at full strength. *Ridge 3* looks like the
average, as it should. At *0.001* some of momo's red is back on face and chest, but kiki does not gain and the background around kiki breaks: a nearly exact fit of what was recorded is not the best model."""),
(54,"That is everything the node keeps besides the Concepts","""Why does the quick update lose *less* than the exact one? Each number is measured on the inputs that this update was solved for, and the two have other inputs: the quick one's were recorded under different models (bibi's and momo's
without kiki). So a smaller number here does not say that the quick model is better; that they differ by 27 % of the update's size is the honest measure.

What is printed last is everything the node keeps besides the Concepts"""),
])
