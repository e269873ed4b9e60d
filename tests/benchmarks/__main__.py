"""Run the benchmarks and print their figures."""

from tests.benchmarks import agent_idle, background_work, check_in, command_latency, imports, requests

if __name__ == "__main__":
    for module in (imports, requests, check_in, command_latency, background_work, agent_idle):
        print(f"\n{module.__doc__.strip().splitlines()[0]}")
        for line in module.measure():
            print(f"  {line}")
