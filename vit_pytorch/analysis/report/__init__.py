"""One self-contained HTML page that shows what a model does with some images."""

from vit_pytorch.analysis.report.gather import Explanation, Relevance, explain_image
from vit_pytorch.analysis.report.page import Subject, write_report
from vit_pytorch.analysis.report.pictures import write_pictures

__all__ = ["Explanation", "Relevance", "Subject", "explain_image", "write_pictures", "write_report"]
