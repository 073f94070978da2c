"""Break the eight paper files on purpose, one small change at a time, and see a test turn red: python tests/mutants.py

Each mutant is (file, old text, new text, the test that should notice). It is made in a temporary copy, in a process of
its own that is forked after the slow imports, so that one takes about a second or two. A mutant that its own test does
not notice is run against all fast tests before it counts as survived. Arguments choose mutants by a part of their file
or text; pytest does not collect this file. Exit code 1 if any survived.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ("attention", "diffusion", "evaluation", "fusion", "lora", "prompts", "regions", "tuning")
FAST = ("test_equations.py", "test_paper_files.py")
SLOW = "test_paper_files.py::test_nothing_else_of_the_package_is_loaded"  # starts an interpreter of its own
SECONDS = 1800  # after which a mutant that hangs counts as noticed

E, P = "test_equations.py::", "test_paper_files.py::"
MUTANTS = [
    # attention
    ("attention", "/ d**0.5", "/ d", E + "test_softmax"),
    ("attention", "scores.softmax(dim=-1)", "scores.softmax(dim=-2)", E + "test_softmax"),
    (
        "attention",
        "return attention_weights(q, k) @ v",
        "return attention_weights(q, k).square() @ v",
        E + "test_attend",
    ),
    (
        "attention",
        "x.unflatten(2, (heads, -1)).transpose(1, 2)",
        "x.unflatten(2, (-1, heads)).permute(0, 3, 1, 2)",
        E + "test_attend",
    ),
    ("attention", "context[:, self.layer]", "context[:, self.layer - 1]", E + "test_each_layer_reads_its_own_prompt"),
    ("attention", '"mid_block": 1, "up_blocks": 2', '"mid_block": 2, "up_blocks": 1', E + "test_layers_in_order"),
    (
        "attention",
        "        yield ours\n        check_processors(modules, ours)\n",
        "        yield ours\n",
        P + "test_swapped_notices_who_replaces_processors",
    ),
    (
        "attention",
        "        check_processors(modules, ours)\n        yield ours\n",
        "        yield ours\n",
        P + "test_swapped_notices_processors_that_do_not_get_on",
    ),
    (
        "attention",
        "zip(modules, before, strict=True)",
        "zip(modules, ours, strict=True)",
        P + "test_swapped_puts_on_and_takes_off",
    ),
    ("attention", "h = (h + 1) // 2", "h = h // 2", P + "test_layer_sizes"),
    ("attention", "    if h * w != T:\n", "    if h * w > T:\n", P + "test_layer_sizes"),
    ("attention", "weights.mean(dim=1)", "weights[:, 0]", P + "test_attention_store"),
    (
        "attention",
        "weights.mean(dim=1)",
        "weights.mean(dim=1).detach()",
        P + "test_words_learn_by_the_attention_term_alone",
    ),
    ("attention", "self.sums[layer] / self.calls[layer]", "self.sums[layer]", P + "test_attention_store"),
    (
        "attention",
        "        return weights @ v\n",
        "        return weights.detach() @ v\n",
        P + "test_storing_attention_leaves_gradients_as_they_are",
    ),
    ("attention", "torch.stack(enlarged).mean(dim=0)", "torch.stack(enlarged).sum(dim=0)", P + "test_attention_store"),
    # prompts
    ("prompts", "rows = table[:, layer]", "rows = table[:, 0]", E + "test_layerwise_words"),
    ("prompts", "slots.append(words.index(piece))", "slots.append(0)", E + "test_layerwise_words"),
    ("prompts", "embeddings.flatten(0, 1)", "embeddings.transpose(0, 1).flatten(0, 1)", E + "test_layerwise_words"),
    (
        "prompts",
        "torch.where(is_word, rows[slots.clamp(min=0)], plain)",
        "plain + rows[slots.clamp(min=0)] * is_word",
        E + "test_layerwise_words",
    ),
    ("prompts", ".expand(-1, L, -1)  # 3.1 V", "[:, -1:].expand(-1, L, -1)  # 3.1 V", E + "test_layerwise_words"),
    (
        "prompts",
        "text_encoder(ids)[0]",
        "text_encoder(ids, output_hidden_states=True).hidden_states[-1]",
        E + "test_context",
    ),
    ("prompts", " * embedding_std(text_encoder)  # 3.3.1", "  # 3.3.1", E + "test_random_word"),
    ("prompts", 'f"{seed} {word}"', 'f"{seed}"', E + "test_random_word"),
    ("prompts", "rows.mean(dim=0)", "rows[0]", E + "test_class_word"),
    ("prompts", "places / places.sum(dim=1, keepdim=True).clamp(min=1)", "places", P + "test_where_words_stand"),
    (
        "prompts",
        "model_max_length - 2",
        "model_max_length - 3",
        P + "test_concept_words_are_one_token_also_beside_punctuation",
    ),
    (
        "prompts",
        "        handle.remove()\n",
        "        pass\n",
        P + "test_gradients_reach_the_words_and_their_own_layer",
    ),
    # diffusion
    ("diffusion", "(1 - a).sqrt() * noise", "(1 - a) * noise", E + "test_noisy_latents"),
    (
        "diffusion",
        "a.sqrt() * latents + (1 - a).sqrt() * noise",
        "(1 - a).sqrt() * latents + a.sqrt() * noise",
        E + "test_noisy_latents",
    ),
    ("diffusion", "(noise - predicted).square()", "(noise + predicted).square()", E + "test_equation_1"),
    ("diffusion", "(noise - predicted).square()", "(noise - predicted).abs()", E + "test_equation_1"),
    (
        "diffusion",
        "predicted = model.unet(z_t, t, context)",
        "predicted = model.unet(latents, t, context)",
        E + "test_equation_1",
    ),
    ("diffusion", "return eps_negative + guidance", "return eps_positive + guidance", E + "test_guidance"),
    ("diffusion", "eps_negative, eps_positive = ", "eps_positive, eps_negative = ", E + "test_guidance"),
    ("diffusion", "torch.randn(B, C, 1, 1,", "torch.randn(B, 1, 1, 1,", E + "test_what_equation_1_averages_over"),
    ("diffusion", "noise + noise_offset *", "noise + noise_offset**2 *", E + "test_what_equation_1_averages_over"),
    (
        "diffusion",
        "num_train_timesteps, (B,)",
        "num_train_timesteps // 2, (B,)",
        E + "test_what_equation_1_averages_over",
    ),
    ("diffusion", "manual_seed(seed + i)", "manual_seed(seed)", E + "test_sampling_loop"),
    ("diffusion", "scheduler.set_timesteps(steps,", "scheduler.set_timesteps(steps + 1,", E + "test_sampling_loop"),
    ("diffusion", "return z * model.vae.config.scaling_factor", "return z", E + "test_latents_of_pictures"),
    ("diffusion", "model.vae.config.scaling_factor).sample", "1.0).sample", E + "test_latents_of_pictures"),
    ("diffusion", "memo[id(tensor)] = tensor", "pass", P + "test_copies_share_what_stays_the_same"),
    ("diffusion", "words=dict(self.words)", "words=self.words", P + "test_copies_share_what_stays_the_same"),
    ("diffusion", "block_out_channels) - 1)", "block_out_channels))", E + "test_latents_of_pictures"),
    (
        "diffusion",
        "net.requires_grad_(False).eval()",
        "net.eval()",
        P + "test_a_model_is_frozen_where_it_is_first_made",
    ),
    (
        "diffusion",
        "net.requires_grad_(False).eval()",
        "net.requires_grad_(False)",
        P + "test_a_model_is_frozen_where_it_is_first_made",
    ),
    (
        "diffusion",
        "        self.layers = install(self.unet)\n",
        "        self.layers = install(self.unet.requires_grad_(False))\n",
        P + "test_a_copy_does_not_freeze_what_is_being_tuned",
    ),
    ("diffusion", "context, noise, t).mean()", "context, noise, t).sum()", E + "test_equation_1"),
    # lora
    ("lora", "+ self.alpha * low_rank", "- self.alpha * low_rank", E + "test_low_rank_layer"),
    ("lora", "+ self.alpha * low_rank", "+ low_rank", E + "test_low_rank_layer"),
    ("lora", "torch.zeros(linear.out_features, r)", "torch.ones(linear.out_features, r)", E + "test_low_rank_layer"),
    ("lora", "a=math.sqrt(5)", "a=0", E + "test_low_rank_starts_like_a_linear_layer"),
    ("lora", ".requires_grad_(False)\n        else", "\n        else", E + "test_low_rank_starts_like_a_linear_layer"),
    ("lora", "return alpha * (up @ down)", "return up @ down", E + "test_delta"),
    ("lora", "alpha * concept.scale", "alpha", E + "test_with_concept"),
    ("lora", "W = (W0.cpu() + dW", "W = (W0.cpu() - dW", E + "test_with_concept"),
    (
        "lora",
        "layers[name].weight = nn.Parameter(W, requires_grad=False)",
        "layers[name].weight.data.copy_(W)",
        P + "test_identities_of_one_concept",
    ),
    ("lora", "dW.cpu())", "dW.cpu().to(W0.dtype))", P + "test_half_precision_adds_updates_in_full"),
    ("lora", "up = module.alpha * module.up", "up = module.up", P + "test_extract_is_what_was_attached"),
    ("lora", "if word in model.words:", "if False:", P + "test_names_that_do_not_fit_are_refused"),
    ("lora", "(q|k|v|out)_proj", "(q|k|v)_proj", P + "test_ed_lora_is_as_large_as_the_official_file"),
    # tuning
    (
        "tuning",
        "batch.latents, c, batch.noise, batch.t)",
        "batch.noise, c, batch.latents, batch.t)",
        E + "test_equation_1",
    ),
    (
        "tuning",
        " if recipe.attention > 0 else nullcontext()",
        "",
        P + "test_attention_is_stored_only_for_the_recipe_that_asks",
    ),
    ("tuning", "seed=seed + i, steps", "seed=seed, steps", P + "test_class_pictures_are_the_model_s_own"),
    (
        "tuning",
        'return " ".join(self.words)',
        'return " ".join(reversed(self.words))',
        E + "test_two_words_in_a_prompt",
    ),
    (
        "tuning",
        'prompt.replace("<TOK>", run.phrase)',
        "prompt",
        P + "test_tune_goes_from_pictures_to_a_concept",
    ),
    ("tuning", "math.ceil(500 *", "math.floor(500 *", P + "test_tune_resolves_steps_and_prior"),
    ("tuning", "    if recipe.prior > 0:\n", "    if False:\n", P + "test_tune_resolves_steps_and_prior"),
    ("tuning", "(error * counted)", "error", P + "test_only_the_mask_counts_in_ed_lora"),
    ("tuning", "/ counted.sum(dim=(1, 2, 3)).clamp(min=1)", "/ counted[0].numel()", E + "test_official_loss"),
    ("tuning", "+ (1 - recipe.background) * batch.masks", "+ batch.masks", E + "test_equation_1"),
    ("tuning", "loss + recipe.attention *", "loss - recipe.attention *", E + "test_official_loss"),
    ("tuning", "attention=0.0025", "attention=0.01", E + "test_official_loss"),
    ("attention", "outside = 1 - inside", "outside = inside", E + "test_attention_regularisation"),
    (
        "attention",
        "relative = mean / mean.amax(dim=2, keepdim=True).clamp(min=1e-8)",
        "relative = mean",
        E + "test_attention_regularisation",
    ),
    ("attention", "mean.amax(dim=2, keepdim=True)", "mean.amax()", E + "test_attention_regularisation"),
    ("attention", "/ outside.sum(dim=2).clamp(min=1e-8)", "/ outside.shape[2]", E + "test_attention_regularisation"),
    ("tuning", "(batch.weight * loss).sum()", "loss.mean()", E + "test_equation_1"),
    ("tuning", "len(base.layers) if recipe.layerwise else 1", "1", P + "test_both_words_start_as_they_should"),
    ("tuning", 'if kind == "rand":', 'if kind == "class":', P + "test_both_words_start_as_they_should"),
    ("tuning", 'init=("rand", "class"),  # 3', 'init=("class", "rand"),  # 3', E + "test_ed_lora"),
    ("tuning", "1 - decay * step", "1 + decay * step", P + "test_the_loop_by_hand"),
    ("tuning", "        optimizer.zero_grad()\n", "", P + "test_the_loop_by_hand"),
    ("tuning", "        schedule.step()\n", "", P + "test_the_loop_by_hand"),
    ("tuning", "if norm >= limit:", "if norm < limit:", P + "test_long_words_are_frozen"),
    ("tuning", " * math.sqrt(D)  #", "  #", P + "test_long_words_are_frozen"),
    (
        "tuning",
        "weight.append(loss_weight / recipe.batch)",
        "weight.append(loss_weight)",
        P + "test_batches_hold_the_prior_beside_the_concept",
    ),
    ("tuning", "(prior, recipe.prior_weight)", "(prior, 1.0)", P + "test_batches_hold_the_prior_beside_the_concept"),
    (
        "tuning",
        "masks.append(source.masks[i])",
        "masks.append(source.masks[0])",
        P + "test_batches_hold_the_prior_beside_the_concept",
    ),
    (
        "tuning",
        "(tuning.model.text_encoder, recipe.lr_text)",
        "(tuning.model.text_encoder, recipe.lr_unet)",
        P + "test_rates_of_the_groups_and_their_decay",
    ),
    ("tuning", "[*self.words, self.class_word]", "[self.class_word, *self.words]", P + "test_the_whole_paper"),
    ("tuning", 'r"attn2\\.to_[kv]$"', 'r"attn2\\.to_[qkv]$"', P + "test_the_whole_paper"),
    # fusion
    ("fusion", "    w = w / w.sum()", "    w = w", E + "test_equation_2"),
    ("fusion", "W = W + w_i * dW_i", "W = W - w_i * dW_i", E + "test_equation_2"),
    ("fusion", "gap = W0 + dW_i - W ", "gap = dW_i - W ", E + "test_objective"),
    ("fusion", "((gap @ G_i) * gap).sum()", "((gap @ G_i) * gap).sum().sqrt()", E + "test_objective"),
    ("fusion", "((gap @ G_i) * gap).sum()", "(gap @ G_i).sum()", E + "test_objective"),
    (
        "fusion",
        "torch.linalg.pinv(G + lam * eye, hermitian=True)",
        "(torch.linalg.pinv(G, hermitian=True) + lam * eye)",
        E + "test_closed_form",
    ),
    ("fusion", "ridge * G.diagonal().mean()", "ridge", E + "test_closed_form"),
    ("fusion", "(W0 + dW_i - W_prior) @ G_i", "(W0 + dW_i) @ G_i", E + "test_closed_form"),
    ("fusion", 'if towards == "base"', 'if towards == "average"', E + "test_closed_form"),
    ("fusion", "return W_prior + right_side @", "return W0 + right_side @", E + "test_closed_form"),
    ("fusion", "lam = ridge *", "lam = 2 * ridge *", E + "test_ridge"),
    ("fusion", "max_iter=iterations", "max_iter=1", E + "test_lbfgs"),
    ("fusion", "W = start.clone().requires_grad_()", "W = torch.zeros_like(start).requires_grad_()", E + "test_lbfgs"),
    ("fusion", "return best[1]", "return start", E + "test_lbfgs"),
    ("fusion", "grams.get(name, 0) + rows.T @ rows", "rows.T @ rows", E + "test_recorded_inputs"),
    (
        "fusion",
        "grams.get(name, 0) + rows.T @ rows",
        "grams.get(name, 0) + rows.T @ rows / len(rows)",
        E + "test_recorded_inputs",
    ),
    (
        "fusion",
        "rows.T @ rows  # float64",
        "(rows.float().T @ rows.float()).double()  # float64",
        E + "test_directions_without_input_stay_at_the_prior",
    ),
    ("fusion", "    if len(grams) < len(linears):", "    if False:", E + "test_recorded_inputs"),
    (
        "fusion",
        '        own = with_concept_layers(fused, concept, "text_encoder", names)',
        "        own = fused",
        E + "test_text_is_recorded_with_the_concept_s_own_lora",
    ),
    (
        "fusion",
        '        own = with_concept_layers(fused, concept, "unet", names)',
        "        own = fused",
        E + "test_pictures_are_recorded_with_fused_keys",
    ),
    (
        "fusion",
        "fuse_keys_and_values(fused, concepts, fusion, recording)  #",
        "fuse_keys_and_values(with_words(base, concepts), concepts, fusion, recording)  #",
        E + "test_keys_are_recorded_from_the_fused_text_encoder",
    ),
    (
        "fusion",
        "rows = context[:, layer].flatten(0, 1)",
        "rows = context[:, layer - 1].flatten(0, 1)",
        E + "test_keys_are_recorded_from_the_fused_text_encoder",
    ),
    ("fusion", '("attn2.to_k", "attn2.to_v")', '("attn2.to_k",)', E + "test_equation_3"),
    ("fusion", "fusion(W0, deltas, seen) - W0", "fusion(W0, deltas, seen)", E + "test_equation_3"),
    (
        "fusion",
        "seed = recording.seed + number",
        "seed = recording.seed",
        E + "test_pictures_are_recorded_with_fused_keys",
    ),
    ("fusion", '"guidance": recording.guidance', '"guidance": 1.0', E + "test_pictures_are_recorded_with_fused_keys"),
    ("fusion", ", concept.scale)", ", 1.0)", E + "test_equation_3"),
    ("fusion", "average(W0, deltas, weights=weights)", "average(W0, deltas)", E + "test_equation_2_on_a_model"),
    # regions
    ("regions", "(1 - w.sum(0)) * h +", "h +", E + "test_blend"),
    ("regions", "(w * h_i).sum(0)", "h_i.sum(0)", E + "test_blend"),
    ("regions", "(1 - w.sum(0)) * h", "(1 - w.amax(0)) * h", E + "test_blend"),
    ("regions", "covers / covers.sum(dim=0).clamp(min=1)", "covers", E + "test_weights"),
    ("regions", "covers.sum(dim=0).clamp(min=1)", "covers.sum(dim=0)", E + "test_weights"),
    (
        "regions",
        "interval_cover(top, bottom, height)[:, None] * interval_cover(left, right, width)[None]",
        "interval_cover(left, right, height)[:, None] * interval_cover(top, bottom, width)[None]",
        E + "test_masks",
    ),
    ("regions", "(2 * share).clamp(max=1)", "share", E + "test_small_regions_and_soft_masks"),
    ("regions", "(2 * share).clamp(max=1)", "2 * share", E + "test_masks"),
    ("regions", "inside = share > 1 - 1e-4", "inside = share > 0", E + "test_masks"),
    ("regions", "share >= share.max() - 1e-4", "share > 0", E + "test_small_regions_and_soft_masks"),
    ("regions", "            return share  #", "            pass  #", E + "test_small_regions_and_soft_masks"),
    ("regions", "negative, positive = h.chunk(2)", "positive, negative = h.chunk(2)", E + "test_regional_prompts"),
    ("regions", "hidden_states.chunk(2)[1]", "hidden_states.chunk(2)[0]", E + "test_regional_prompts"),
    ("regions", "context[self.layer]", "context[self.layer - 1]", E + "test_regional_prompts"),
    ("regions", "guided=guidance != 1", "guided=True", P + "test_region_identities"),
    (
        "regions",
        "latent_size(model, size), guided",
        "latent_size(model), guided",
        P + "test_regions_on_other_sizes_and_errors",
    ),
    # evaluation
    ("evaluation", "return weight * cosines", "return cosines", E + "test_text_alignment"),
    ("evaluation", "(x @ text.T).clamp(min=0)", "(x @ text.T)", E + "test_text_alignment"),
    ("evaluation", "(x @ y.T).clamp(min=0)", "(x @ y.T)", E + "test_image_alignment"),
    ("evaluation", "(x @ y.T)", "(x @ y[:1].T)", E + "test_image_alignment"),
    ("evaluation", "sample(base, class_prompt,", "sample(base, prompt,", E + "test_bounds"),
    ("evaluation", "return upper, lower", "return lower, upper", E + "test_bounds"),
    ("evaluation", "== value", "!= value", E + "test_marks_kept"),
    ("evaluation", "(len(images) * len(marks))", "len(images)", E + "test_marks_kept"),
    ("evaluation", "    if left:", "    if False:", E + "test_text_alignment"),
]


CONFTEST = """
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_folder():
    return Path(__file__).parents[1] / "tiny"
"""


def copy_to(folder: Path) -> None:
    """What the fast tests need and no more: the eight files, their tests, and the tiny model, built once."""
    for name in ("mixofshow_lite", "tests"):
        (folder / name).mkdir()
    for name in ("__init__", *FILES):
        shutil.copy(ROOT / "mixofshow_lite" / f"{name}.py", folder / "mixofshow_lite")
    for name in ("paper_tiny.py", "bench/sd15_shapes.py", *FAST):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    shutil.copy(ROOT / "README.md", folder)  # its code is a test
    (folder / "tests" / "conftest.py").write_text(CONFTEST)

    def build():
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        from tiny import build_tiny

        build_tiny(folder / "tiny")

    if not in_a_child(build, folder):
        raise SystemExit((folder / "out.txt").read_text())


def in_a_child(work, folder: Path) -> bool:
    """Run work() in a forked process, its output in out.txt; whether it gave 0 or None, in time."""
    child = os.fork()
    if child == 0:
        with open(folder / "out.txt", "w") as out:
            os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
            code = 1
            try:
                code = int(work() or 0)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    end = time.time() + SECONDS
    while time.time() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run_tests(folder: Path, tests: list[str]) -> bool:
    """Whether all of them pass, in a process of its own; False also if it takes too long."""

    def work() -> int:
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        options = [
            "-x",
            "-q",
            "-W",
            "ignore",
            "-p",
            "no:cacheprovider",
            "--assert=plain",
            "--deselect",
            f"tests/{SLOW}",
        ]
        return pytest.main([*options, *(f"tests/{test}" for test in tests)])

    return in_a_child(work, folder)


def verdict(folder: Path, file: str, old: str, new: str, test: str) -> str:
    """Make one mutant, test it, and undo it -> "killed", "killed elsewhere" or "SURVIVED"."""
    path = folder / "mixofshow_lite" / f"{file}.py"
    text = path.read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file}.py has {old!r} {text.count(old)} times, not once: bring the mutant up to date.")
    try:
        path.write_text(text.replace(old, new))
        if not run_tests(folder, [test]):
            return "killed"
        return "SURVIVED" if run_tests(folder, list(FAST)) else "killed elsewhere"
    finally:
        path.write_text(text)


def main(words: list[str]) -> int:
    sys.dont_write_bytecode = True  # a mutant may have the size and the second of the file before it
    # Slow imports, once for all forks. No name of this package may be among them.
    import peft  # noqa: F401
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401

    torch.set_num_threads(1)
    chosen = [m for m in MUTANTS if not words or any(word in f"{m[0]} {m[1]} {m[2]}" for word in words)]
    results = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy_to(folder)
        if not run_tests(folder, list(FAST)):
            print((folder / "out.txt").read_text())
            raise SystemExit("The tests fail without any mutant: mend that first.")
        for number, mutant in enumerate(chosen, start=1):
            start = time.time()
            results.append(verdict(folder, *mutant))
            shown = " -> ".join(" ".join(text.split()) for text in mutant[1:3])
            print(f"{number:3} {results[-1]:16} {time.time() - start:5.1f} s  {mutant[0]}: {shown}", flush=True)
    survived = results.count("SURVIVED")
    print(f"{len(results)} mutants: {len(results) - survived} killed, {survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
