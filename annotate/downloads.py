"""A project's judgments as a file on its way out, the same for the admin, managers' pages and the API."""

from django.http import Http404, StreamingHttpResponse
from django.utils.http import content_disposition_header
from django.utils.text import slugify

from annotate.formats import FORMATS
from annotate.models import Project
from annotate.queries import judgment_rows


def export_response(project: Project, format_name: str) -> StreamingHttpResponse:
    """
    Raises:
        Http404: there is no such format.
    """
    if format_name not in FORMATS:
        raise Http404
    lines = FORMATS[format_name](judgment_rows(project))
    filename = f"{slugify(project.name) or project.pk}-{format_name}.jsonl"
    headers = {"Content-Disposition": content_disposition_header(as_attachment=True, filename=filename) or ""}
    return StreamingHttpResponse(lines, content_type="application/jsonl", headers=headers)
