// What this browser keeps by itself: the images that came here, and the requests that it sent. Nothing of it leaves it.

const NAME = "worker-page";
let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("results", { keyPath: "id" }).createIndex("at", "at");
      request.result.createObjectStore("requests", { keyPath: "job" });
      request.result.createObjectStore("grids", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function within(store, mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(store, mode);
    const request = work(transaction.objectStore(store));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

export const put = (store, value) => within(store, "readwrite", (objects) => objects.put(value));
export const get = (store, id) => within(store, "readonly", (objects) => objects.get(id));
export const all = (store) => within(store, "readonly", (objects) => objects.getAll());
export const remove = (store, id) => within(store, "readwrite", (objects) => objects.delete(id));
export const clear = (store) => within(store, "readwrite", (objects) => objects.clear());

/** The results of this browser, the newest first. */
export async function results() {
  return (await all("results")).sort((one, other) => other.at - one.at || one.index - other.index);
}
