(() => {
  const seconds = Number(document.documentElement.dataset.refresh), fresh = document.getElementById("fresh");
  let last = Date.now(), gone = false;
  const say = () => {
    const age = Math.round((Date.now() - last) / 1000);
    fresh.textContent = gone ? `the server does not answer; what you see is ${age} s old` : `updated ${age} s ago`;
    fresh.classList.toggle("gone", gone);
  };
  const renew = async () => {
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(answer.status);
      const found = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      const open = new Set([...document.querySelectorAll("details[open]")].map((each) => each.id));
      found.querySelectorAll("details").forEach((each) => { each.open = open.has(each.id); });
      document.querySelector("main").replaceWith(document.adoptNode(found));
      last = Date.now();
      gone = false;
    } catch { gone = true; }
    say();
    setTimeout(renew, 1000 * seconds);
  };
  setTimeout(renew, 1000 * seconds);
  setInterval(say, 1000);
  say();
})();
