// Photos of a camera that the page itself shows. A phone's own camera is behind "Take a photo".

const find = (id) => document.getElementById(id);

/**
 * Let people photograph.
 *
 * @param {(photo: File) => void} add takes a JPEG
 * @param {(text: string) => void} say tells why there is no camera
 */
export function startCamera(add, say) {
  // browsers give the camera to https and localhost alone
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
  find("camera").disabled = true; // one stream
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
