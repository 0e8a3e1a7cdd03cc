"""What a document in the R4 format says that this version does not know: kept with the holder, by its place.

Places: `""`, in the holder's own element; `TAG`, in that container; `TAG:NAME`, in that leaf. `@`, `@TAG` and
`@TAG:NAME` are the attributes of the same, as names and values with a NUL between them.
"""

from lxml import etree

from crannog.adapters.store.xml_document import attributes_of, raw
from crannog.core.properties import Holder


class Foreign:
    """Collects what is kept while a document is read."""

    def __init__(self) -> None:
        self._places: dict[tuple[Holder, str], list[str]] = {}

    def keep(self, holder: Holder, place: str, element: etree._Element) -> None:
        """Keep an element, to be written again in the same place."""
        self._places.setdefault((holder, place), []).append(raw(element))

    def keep_inside(self, holder: Holder, element: etree._Element, name: str) -> None:
        """Keep what stands in an element that has nothing in it as far as this version knows."""
        for child in element if len(element) else ():
            self.keep(holder, f"{element.tag!s}:{name}", child)

    @staticmethod
    def keep_attributes(holder: Holder, element: etree._Element, known: tuple[str, ...], place: str = "@") -> None:
        """Keep the attributes that are not known."""
        names = element.keys()
        if not names or (len(names) == 1 and names[0] in known):
            return  # nearly always, and this is asked of every element
        if any(key not in known for key in names):
            more = [f"{key}\0{value}" for key, value in attributes_of(element).items() if key not in known]
            holder.foreign[place] = tuple(more)

    def hand_over(self) -> None:
        """Give all that was kept to the holders."""
        for (holder, place), texts in self._places.items():
            holder.foreign[place] = tuple(texts)
