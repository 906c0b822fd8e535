// A text field with a list of suggestions (ARIA 1.2 combobox pattern): arrows, Enter, Escape.

/**
 * @param {HTMLInputElement} input with aria-controls naming its <ul role=listbox>
 * @param {(text: string) => Promise<{found: {id: string, title: string}[], total: ?number,
 *   missing?: string}>} search
 * @param {(choice: {id: string, title: string}) => void} choose called with what was chosen
 * @param {boolean} free Enter also takes the text as it was typed
 */
export function combobox(input, search, choose, free) {
  const list = document.getElementById(input.getAttribute("aria-controls"));
  let found = [];
  let active = -1;
  let asked = 0;

  function close() {
    asked++; // what is still under way comes too late
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function activate(index) {
    active = index;
    [...list.querySelectorAll("[role=option]")].forEach((option, at) => {
      option.setAttribute("aria-selected", String(at === index));
      if (at === index) {
        input.setAttribute("aria-activedescendant", option.id);
        option.scrollIntoView({ block: "nearest" });
      }
    });
  }

  function take(choice) {
    close();
    choose(choice);
  }

  function remark(text) {
    const entry = document.createElement("li");
    entry.className = "remark";
    entry.setAttribute("role", "presentation");
    entry.textContent = text;
    list.append(entry);
  }

  function show(answer) {
    found = answer.found;
    active = -1;
    input.removeAttribute("aria-activedescendant");
    list.replaceChildren(
      ...found.map((entry, index) => {
        const option = document.createElement("li");
        option.id = `${list.id}-${index}`;
        option.setAttribute("role", "option");
        option.setAttribute("aria-selected", "false");
        option.append(entry.title || entry.id);
        if (entry.title) {
          const id = document.createElement("span");
          id.className = "id";
          id.textContent = entry.id;
          option.append(" ", id);
        }
        // Before the field loses the focus, which closes the list.
        option.addEventListener("pointerdown", (event) => {
          event.preventDefault();
          take(entry);
        });
        return option;
      }),
    );
    if (answer.missing) remark(answer.missing);
    else if (!found.length) remark("Nothing found.");
    else if (answer.total > found.length) remark(`${found.length} of ${answer.total} shown`);
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
  }

  async function suggest(text) {
    const ticket = ++asked;
    try {
      const answer = await search(text);
      if (ticket === asked) show(answer);
    } catch (error) {
      if (ticket === asked) show({ found: [], total: null, missing: error.message });
    }
  }

  input.addEventListener("input", () => suggest(input.value));
  input.addEventListener("focus", () => input.select());
  input.addEventListener("click", () => list.hidden && suggest(""));
  input.addEventListener("blur", close);
  input.addEventListener("keydown", async (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) {
        await suggest("");
      } else if (found.length) {
        const step = event.key === "ArrowDown" ? 1 : -1;
        activate(active < 0 && step < 0 ? found.length - 1 : (active + step + found.length) % found.length);
      }
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (!list.hidden && active >= 0) take(found[active]);
      else if (free) take({ id: input.value.trim(), title: "" });
      else if (!list.hidden && found.length) take(found[0]);
    } else if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      close();
    }
  });
}
