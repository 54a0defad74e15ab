"""All studies, in the order of the paper."""

from benchmarks.paper import bottleneck, figure2, figure3, figure4, figure5, figure6, figure7, memory, table2, table4
from benchmarks.paper.study import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (figure2, figure3, memory, table2, bottleneck, figure4, figure5, figure6, table4, figure7)
}
LEFT_OUT: dict[str, str] = {}  # figure -> why it is missing
