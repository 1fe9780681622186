"""The master's coroutines go on, whatever happens in them."""

import asyncio

from wsgimaster.master import keep_going


def test_a_coroutine_that_fails_is_reported_and_starts_again():
    starts, reports = [], []

    async def coroutine():
        starts.append(len(starts))
        if len(starts) < 3:
            raise RuntimeError(f"start {len(starts)}")
        await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(keep_going(coroutine, lambda _loop, context: reports.append(context), pause=0))
        while len(starts) < 3:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    assert starts == [0, 1, 2]
    assert [str(context["exception"]) for context in reports] == ["start 1", "start 2"]
