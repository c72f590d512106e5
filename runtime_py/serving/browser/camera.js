// A picture from the camera: live where the browser lets a page see it (https or this machine), else the phone's own camera.

import { at } from "./elements.js";

/** Open the camera; `taken` gets a file. `complain` is told what goes wrong. */
export async function photograph(taken, complain) {
  if (!navigator.mediaDevices?.getUserMedia) {
    at("capture").click();
    return;
  }
  let seen;
  try {
    seen = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    complain(error.name === "NotFoundError" ? "This machine has no camera." : "The camera may not be used.");
    return;
  }
  const [dialog, view] = [at("camera"), at("view")];
  view.srcObject = seen;
  dialog.onclose = () => {
    seen.getTracks().forEach((track) => track.stop());
    view.srcObject = null;
    at("question").focus();
  };
  at("close").onclick = () => dialog.close();
  at("take").onclick = async () => {
    taken(await still(view));
    dialog.close();
  };
  dialog.showModal();
}

/** What a video shows now, as a JPEG file. */
function still(view) {
  const canvas = document.createElement("canvas");
  canvas.width = view.videoWidth;
  canvas.height = view.videoHeight;
  canvas.getContext("2d").drawImage(view, 0, 0);
  return new Promise((done) =>
    canvas.toBlob((blob) => done(new File([blob], "Photograph", { type: blob.type })), "image/jpeg", 0.92),
  );
}
