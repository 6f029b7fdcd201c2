// Photos from a camera that the page shows. On phones, "Take a photo" opens the phone's camera.

const find = (id) => document.getElementById(id);

/**
 * Enable the camera's controls.
 *
 * @param {(photo: File) => void} add called with each photo, a JPEG
 * @param {(text: string) => void} say called with the reason if the camera cannot be used
 */
export function startCamera(add, say) {
  // browsers allow the camera only for https and localhost
  find("camera").hidden = navigator.mediaDevices?.getUserMedia === undefined;
  find("camera").disabled = false;
  find("camera").addEventListener("click", () => {
    open().catch((error) => {
      close();
      say(`The camera cannot be used: ${error.message}`);
    });
  });
  find("close").addEventListener("click", close);
  find("shoot").addEventListener("click", () => shoot(add));
}

async function open() {
  find("camera").disabled = true; // so that a second click opens no second stream
  const video = { facingMode: "environment" };
  find("video").srcObject = await navigator.mediaDevices.getUserMedia({ video });
  await find("video").play();
  find("camera").hidden = true;
  find("live").hidden = false;
  find("shoot").focus();
}

function close() {
  for (const track of find("video").srcObject?.getTracks() ?? []) track.stop();
  find("video").srcObject = null;
  find("live").hidden = true;
  find("camera").hidden = find("camera").disabled = false;
  find("camera").focus();
}

function shoot(add) {
  const video = find("video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const name = `photo ${new Date().toLocaleTimeString()}.jpg`;
  canvas.toBlob((blob) => add(new File([blob], name, { type: blob.type })), "image/jpeg", 0.95);
}
