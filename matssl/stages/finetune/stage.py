"""From the settings to a run folder: what is found, said and made before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matssl import preflight
from matssl.core import runtime
from matssl.core.config import to_dict
from matssl.core.run_folder import RunFolder
from matssl.models.segmentation import build_model
from matssl.stages import console, lineage, resume
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune import report
from matssl.stages.finetune.loop import Run
from matssl.stages.finetune.settings import FinetuneSettings, check, record, resolved


def run(settings: FinetuneSettings, argv: Sequence[str]) -> Path:
    """Run the stage and return its run folder; see :func:`matssl.stages.finetune.finetune`."""
    settings = resolved(settings)
    check(settings)
    console.check_tensorboard(settings.tensorboard)
    rt = runtime.setup(settings)
    name = settings.name or reading.default_name(settings)
    root = Path(settings.output_dir) / "finetune" / name
    RunFolder.check(root, settings.resume, settings.overwrite)
    encoder, decoder = reading.architecture(settings, root)
    settings = replace(settings, encoder=encoder, decoder=decoder)

    unmeasured = record(settings)
    dataset, train, val = reading.find(settings)
    assert dataset.table is not None
    model = build_model(encoder, decoder, dataset.table.num_classes, settings.in_channels)
    facts = preflight.examine_dataset(dataset, unmeasured, opened=reading.OPENED).text()
    console.say(settings, rt, facts)

    inputs = reading.load(dataset, train, val, unmeasured)
    most = reading.largest_batch(settings, len(train), rt.world_size)
    if most < settings.batch_size:
        console.say(settings, rt, f"note    a batch holds the {most} training images at most")
        settings = replace(settings, batch_size=most)
    # A resumed run has its weights in the checkpoint; the file it started from may be gone.
    source = None if settings.resume else settings.ssl_weights_path or settings.weights
    started_from = lineage.start_weights(
        model, source, encoder, inputs.record, settings.pretrained_decoder
    )
    folder = RunFolder.open(
        "finetune", name, settings.output_dir, settings.resume, settings.overwrite, rt.is_main
    )
    rt.barrier()
    run = Run(settings, rt, folder, inputs, model, started_from)
    if folder.resumed:
        run.restore()
    else:
        folder.start(to_dict(settings), argv)
    console.say(settings, rt, run.start_text)
    plan = report.description(settings, inputs, run.schedule.total_steps, run.step)
    console.say(settings, rt, f"{plan}\ndevice  {rt.describe()}\nfolder  {folder.root}")
    note = report.mirroring(inputs, run.crops.size)
    if note:
        console.say(settings, rt, note)
    try:
        with resume.disk_errors(folder):
            if not folder.resumed:
                folder.write_text("preflight.txt", facts + "\n")
                folder.write_json("classes.json", dataset.table.to_dict())
                reading.describe(folder, inputs)
                run.save("last.ckpt")
            run.train()
    except BaseException as error:
        resume.note_end(folder, run.step, error)
        raise
    finally:
        runtime.close()
    return folder.root
