; Both passes of Pillow's resize, eight products at a time; vector_resize.py compiles and calls this.
;
; A pixel has 4 bytes: red, green, blue and one that is not used. A sum starts with one half (2^21),
; adds bytes times weights of 22 fractional bits, and is shifted and clipped to 8 bits. The vectors
; have no processor's width: LLVM splits them as the one at hand needs it.

declare <4 x i32> @llvm.smax.v4i32(<4 x i32>, <4 x i32>)
declare <4 x i32> @llvm.smin.v4i32(<4 x i32>, <4 x i32>)
declare <32 x i32> @llvm.smax.v32i32(<32 x i32>, <32 x i32>)
declare <32 x i32> @llvm.smin.v32i32(<32 x i32>, <32 x i32>)

; Resample the columns of `rows` rows. Two pixels are multiplied at once.
;   pixels   row y is at pixels + y * stride
;   starts   [columns] the byte in a row where the pixels of a result start
;   weights  [columns, pairs, 8] each weight four times, once for each byte of its pixel
;   out      [rows, out_stride] 4 bytes for each result
define void @columns(ptr noalias readonly %pixels, i64 %stride, i64 %rows,
                     ptr noalias readonly %starts, ptr noalias readonly %weights, i64 %pairs,
                     ptr noalias %out, i64 %out_stride, i64 %columns) {
entry:
  %step = mul i64 %pairs, 32
  br label %row
row:
  %y = phi i64 [0, %entry], [%y.next, %row.end]
  %y.in = mul i64 %y, %stride
  %line = getelementptr i8, ptr %pixels, i64 %y.in
  %y.out = mul i64 %y, %out_stride
  %to = getelementptr i8, ptr %out, i64 %y.out
  br label %column
column:
  %x = phi i64 [0, %row], [%x.next, %column.end]
  %w.first = phi ptr [%weights, %row], [%w.next, %column.end]
  %start.at = getelementptr i64, ptr %starts, i64 %x
  %start = load i64, ptr %start.at
  %first = getelementptr i8, ptr %line, i64 %start
  br label %pair
pair:
  %i = phi i64 [0, %column], [%i.next, %pair]
  %sum = phi <8 x i32> [<i32 2097152, i32 2097152, i32 2097152, i32 2097152,
                         i32 0, i32 0, i32 0, i32 0>, %column], [%sum.next, %pair]
  %p.offset = mul i64 %i, 8
  %p.at = getelementptr i8, ptr %first, i64 %p.offset
  %p = load <8 x i8>, ptr %p.at, align 1
  %p.wide = zext <8 x i8> %p to <8 x i32>
  %w.offset = mul i64 %i, 32
  %w.at = getelementptr i8, ptr %w.first, i64 %w.offset
  %w = load <8 x i32>, ptr %w.at, align 4
  %product = mul <8 x i32> %p.wide, %w
  %sum.next = add <8 x i32> %sum, %product
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %i.next, %pairs
  br i1 %more, label %pair, label %column.end
column.end:
  %even = shufflevector <8 x i32> %sum.next, <8 x i32> poison,
                        <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %odd = shufflevector <8 x i32> %sum.next, <8 x i32> poison,
                       <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %both = add <4 x i32> %even, %odd
  %shifted = ashr <4 x i32> %both, splat (i32 22)
  %low = call <4 x i32> @llvm.smax.v4i32(<4 x i32> %shifted, <4 x i32> zeroinitializer)
  %clipped = call <4 x i32> @llvm.smin.v4i32(<4 x i32> %low, <4 x i32> splat (i32 255))
  %bytes = trunc <4 x i32> %clipped to <4 x i8>
  %x.offset = mul i64 %x, 4
  %x.to = getelementptr i8, ptr %to, i64 %x.offset
  store <4 x i8> %bytes, ptr %x.to, align 1
  %w.next = getelementptr i8, ptr %w.first, i64 %step
  %x.next = add nuw nsw i64 %x, 1
  %x.more = icmp ult i64 %x.next, %columns
  br i1 %x.more, label %column, label %row.end
row.end:
  %y.next = add nuw nsw i64 %y, 1
  %y.more = icmp ult i64 %y.next, %rows
  br i1 %y.more, label %row, label %end
end:
  ret void
}

; Resample the rows to `rows` rows, in blocks of 8 pixels, and drop the fourth byte.
;   lines    row y is at lines + y * stride
;   starts   [rows] the row where the pixels of a result start
;   weights  [rows, taps]
;   out      row y is at out + y * out_stride; its last block may reach into the next one, which is
;            written after it
define void @rows(ptr noalias readonly %lines, i64 %stride, i64 %rows,
                  ptr noalias readonly %starts, ptr noalias readonly %weights, i64 %taps,
                  ptr noalias %out, i64 %out_stride, i64 %blocks) {
entry:
  br label %row
row:
  %y = phi i64 [0, %entry], [%y.next, %row.end]
  %w.index = mul i64 %y, %taps
  %w.first = getelementptr i32, ptr %weights, i64 %w.index
  %start.at = getelementptr i64, ptr %starts, i64 %y
  %start = load i64, ptr %start.at
  %y.in = mul i64 %start, %stride
  %line = getelementptr i8, ptr %lines, i64 %y.in
  %y.out = mul i64 %y, %out_stride
  %to = getelementptr i8, ptr %out, i64 %y.out
  br label %block
block:
  %x = phi i64 [0, %row], [%x.next, %block.end]
  %x.in = mul i64 %x, 32
  %first = getelementptr i8, ptr %line, i64 %x.in
  br label %tap
tap:
  %i = phi i64 [0, %block], [%i.next, %tap]
  %sum = phi <32 x i32> [splat (i32 2097152), %block], [%sum.next, %tap]
  %p.offset = mul i64 %i, %stride
  %p.at = getelementptr i8, ptr %first, i64 %p.offset
  %p = load <32 x i8>, ptr %p.at, align 1
  %p.wide = zext <32 x i8> %p to <32 x i32>
  %w.at = getelementptr i32, ptr %w.first, i64 %i
  %w = load i32, ptr %w.at
  %w.one = insertelement <32 x i32> poison, i32 %w, i32 0
  %w.all = shufflevector <32 x i32> %w.one, <32 x i32> poison, <32 x i32> zeroinitializer
  %product = mul <32 x i32> %p.wide, %w.all
  %sum.next = add <32 x i32> %sum, %product
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %i.next, %taps
  br i1 %more, label %tap, label %block.end
block.end:
  %shifted = ashr <32 x i32> %sum.next, splat (i32 22)
  %low = call <32 x i32> @llvm.smax.v32i32(<32 x i32> %shifted, <32 x i32> zeroinitializer)
  %clipped = call <32 x i32> @llvm.smin.v32i32(<32 x i32> %low, <32 x i32> splat (i32 255))
  %bytes = trunc <32 x i32> %clipped to <32 x i8>
  %rgb = shufflevector <32 x i8> %bytes, <32 x i8> poison, <24 x i32> <
    i32 0, i32 1, i32 2, i32 4, i32 5, i32 6, i32 8, i32 9, i32 10, i32 12, i32 13, i32 14,
    i32 16, i32 17, i32 18, i32 20, i32 21, i32 22, i32 24, i32 25, i32 26, i32 28, i32 29, i32 30>
  %x.out = mul i64 %x, 24
  %x.to = getelementptr i8, ptr %to, i64 %x.out
  store <24 x i8> %rgb, ptr %x.to, align 1
  %x.next = add nuw nsw i64 %x, 1
  %x.more = icmp ult i64 %x.next, %blocks
  br i1 %x.more, label %block, label %row.end
row.end:
  %y.next = add nuw nsw i64 %y, 1
  %y.more = icmp ult i64 %y.next, %rows
  br i1 %y.more, label %row, label %end
end:
  ret void
}
