#!/bin/sh
# Breaks the kernels on purpose, one mistake at a time, and sees whether the op tests notice: `make mutants`.
# A mistake is a sed script that changes exactly one place in a copy of one file of llmc/cuda (a few mistakes need
# two scripts, each with its one place). The copy is compiled for the simulated device and linked before the real
# kernels; then test_cuda_ops runs with threads in forward, reverse and random order, at last under
# ThreadSanitizer, until it fails. Prints what noticed each mistake and ends with "N passed, N failed": a mistake
# that lives, a script that no longer fits its file and a copy that does not compile count as failed.
#     sh dev/mutants.sh [WORD]       only the mistakes whose line contains WORD
# The Makefile passes BUILD and, for the builds plain and tsan of the simulated device, the commands to compile
# and link, and the libraries.
set -u
word=${1:-}
dir=$BUILD/mutants
killed=0 failed=0
mkdir -p "$dir"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive CMOCKA_MESSAGE_OUTPUT=STDOUT

# build KIND: compiles $dir/$unit and links it into $dir/test_KIND
build() {
    eval "compile=\$COMPILE_$1 link=\$LINK_$1 libs=\$LIBS_$1"
    case $unit in test_*) link=$(echo "$link" | sed 's/[^ ]*test_cuda_ops\.o//') ;; esac
    $compile -c "$dir/$unit" -o "$dir/mutant_$1.o" >"$dir/log" 2>&1 &&
        $link -o "$dir/test_$1" "$dir/mutant_$1.o" $libs $LINK_END >>"$dir/log" 2>&1
}

# notices KIND NAME=VALUE...: does the test program fail? The simulated device ends a kernel that hangs; a run that
# is merely too slow has noticed nothing.
notices() {
    kind=$1
    shift
    noticed_by="$kind $*"
    env SIM_TIMEOUT=60 "$@" timeout 300 "$dir/test_$kind" "$tests" >"$dir/log" 2>&1
    case $? in 0 | 124) return 1 ;; esac
}

row() { printf '%-15s %-22s %-56s %s\n' "$file" "$tests" "$what" "$1"; }
fail() {
    failed=$((failed + 1))
    row "$1"
}

# prepare FILE: fresh copies. FILE is a source, or a header and the source that is compiled with it: a.cuh/b.cu, where
# b.cu may be a test program of its own.
prepare() {
    mutated=${1%/*} unit=${1#*/}
    rm -f "$dir"/*.cu "$dir"/*.cuh
    cp llmc/cuda/*.cuh "$dir"
    case $unit in
    test_*) sed "s|\"llmc/cuda/$mutated\"|\"$mutated\"|" "test/$unit" >"$dir/$unit" ;;
    *) cp "llmc/cuda/$unit" "$dir" ;;
    esac
}

# mutant FILE TESTS WHAT SCRIPT...: TESTS is a pattern for the names of tests
mutant() {
    file=$1 tests=$2 what=$3
    shift 3
    case "$file $tests $what" in *"$word"*) ;; *) return ;; esac
    prepare "$file"
    for script in "$@"; do
        mv "$dir/$mutated" "$dir/before"
        sed "$script" "$dir/before" >"$dir/$mutated"
        places=$(diff "$dir/before" "$dir/$mutated" | grep -c '^[0-9]')
        if [ "$places" -ne 1 ]; then
            fail "CHANGES $places PLACES: $script"
            return
        fi
    done
    if ! build plain; then
        fail "DOES NOT COMPILE"
        cat "$dir/log"
    elif notices plain SIM_ORDER=forward || notices plain SIM_ORDER=reverse ||
        notices plain SIM_ORDER=random SIM_SEED=1 || notices plain SIM_ORDER=random SIM_SEED=2 ||
        notices plain SIM_ORDER=random SIM_SEED=3 || { build tsan && notices tsan SIM_ORDER=forward; }; then
        killed=$((killed + 1))
        row "killed by $noticed_by"
    else
        fail ALIVE
    fi
}

# Without a mistake everything passes; otherwise a kill means nothing.
if [ -z "$word" ]; then
    prepare act.cu
    tests='*'
    if ! build plain || notices plain SIM_ORDER=forward; then
        tail -n 20 "$dir/log"
        echo "the tests fail without a mistake: mend that first"
        exit 1
    fi
fi

# --- embed ---
mutant embed.cu 'embed_forward' 'the first position is ignored' '/token = wte + /{n;s/(t0 + /(/}'
mutant embed.cu 'embed_forward' 'only the first 32 vectors of a row' 's/c < C; c += WARP_SIZE \* vec/c < 32 * vec<T>::size \&\& c < C; c += WARP_SIZE * vec/'
mutant embed.cu 'embed_backward' 'sort: one pass, whatever the vocabulary' 's/while ((vocab - 1) >> shift > 0)/while (false)/'
mutant embed.cu 'embed_backward' 'sort: no barrier between rank and count' '/popc(peers & /{n;d;}'
mutant embed.cu 'embed_backward' 'sort: no barrier after clearing the counts' '/count\[tid\] = 0;/{n;d;}'
mutant embed.cu 'embed_backward' 'sort: tiles do not know of those before' 's/+ earlier;/;/'
mutant embed.cu 'embed_backward' 'runs: one from the block before is not seen' 's/bool from_before = .*/bool from_before = false;/'
mutant embed.cu 'embed_backward' 'runs: the sum is not cleared after a run' '/from_before = false;/d' 's/for (int e = 0; e < vec<T>::size; e++) sum\[e\] = 0.0f;/;/'
mutant embed.cu 'embed_backward' 'runs: a piece is left out when they are joined' 's/for (int b = block + 1; b/for (int b = block + 2; b/'
mutant embed.cu 'embed_backward' 'gradients are stored, not added' 's/from_float<T>(to_float(old\[k\]) + sum\[k\])/from_float<T>(sum[k])/'

# --- norm ---
mutant norm.cu '*norm_forward' 'variance in one pass' '/if (delta)/,/^}/s/float d = to_float(x\[i\]\[k\]) - m;/float d = to_float(x[i][k]);/' 's/row_sum<WARPS>(squares, scratch) \/ (float)C + NORM_EPS/row_sum<WARPS>(squares, scratch) \/ (float)C - m * m + NORM_EPS/'
mutant norm.cu '*norm_forward' 'no epsilon' '/row_sum<WARPS>(squares/s/ + NORM_EPS//'
mutant norm.cu 'residual_norm_forward' 'the addition is left out of the norm' 's/x\[i\]\[k\] = from_float<T>(to_float(x\[i\]\[k\]) + to_float(d\[k\]));/d[k] = from_float<T>(to_float(x[i][k]) + to_float(d[k]));/' 's/x\[i\].store_streaming(residual/d.store_streaming(residual/'
mutant norm.cu '*norm_forward' 'a row over several warps adds up only one' 's/return block_sum(v, scratch);/return warp_sum(v);/'
mutant norm.cu 'norm_backward' 'sums of a row are not kept apart from the next' '/buffer ^= 1;/d'
mutant norm.cu 'norm_backward' 'no barrier before the sums of a row are read' '/= sum_gx;/{n;n;d;}'
mutant norm.cu 'norm_backward' 'no barrier before the slices are added' '/slice\[threadIdx.y\]\[threadIdx.x\] = sum;/{n;d;}'
mutant norm.cu 'norm_backward' 'the last slice of blocks is dropped' 's/s < FINISH_SLICES;/s < FINISH_SLICES - 1;/'
mutant norm.cu 'norm_backward' 'parameter gradients are stored, not added' 's/from_float<T>(to_float(\*d) + sum)/from_float<T>(sum)/'
mutant norm.cu 'norm_backward' 'dbias and dweight change places' 's/mine\[e\] = dw\[e\], mine\[C + e\] = db\[e\]/mine[e] = db[e], mine[C + e] = dw[e]/'
mutant norm.cu 'norm_backward' 'only the first rows of a block' 's/first < rows; first += (int64_t)gridDim.x \* ROWS/first < (int64_t)gridDim.x * ROWS \&\& first < rows; first += (int64_t)gridDim.x * ROWS/'
mutant norm.cu 'norm_backward' 'the term of xhat is left out' 's/ - mean_g - xhat \* mean_gx);/ - mean_g);/'
mutant kernel.cuh/norm.cu '*norm_*' 'block_sum: no barrier before the sums are read' '/float block_sum/,/^}/{/scratch\[warp\] = v;/{n;d;};}'
mutant kernel.cuh/norm.cu '*norm_*' 'block_sum: scratch is not free on return' '/float block_sum/,/^}/{/lane < warps/{n;d;};}'

# --- act ---
mutant act.cu 'act_forward' 'the last vector is skipped' '/act_forward_vec_kernel/,/^}/s/i >= vectors/i >= vectors - 1/'
mutant act.cu 'act_backward' 'the derivative of the wrong operand' 's/gelu_derivative(to_float(x\[k\]))/gelu_derivative(to_float(d[k]))/'
mutant act.cu 'act_backward' 'the last vector is skipped' '/act_backward_vec_kernel/,/^}/s/i >= vectors/i >= vectors - 1/'
mutant gelu.cuh/act.cu 'act_backward' 'x^2 overflows' 's/    x = fminf(fmaxf(x, -10.0f), 10.0f);/    ;/'

# --- attention, naive ---
mutant attn.cu 'attn_forward' 'naive: the key after the query is seen' 's/float score = s <= t ?/float score = s <= t + 1 ?/'
mutant attn.cu 'attn_forward' 'naive: sums are not rescaled to the new maximum' 's/total = total \* shrink + /total = total + /'
mutant attn.cu 'attn_forward' 'naive: no barrier before probabilities are read' '/weight\[p.lane\] = probability;/{n;d;}'
mutant attn.cu 'attn_backward' 'naive: dk without D' 's/ - D_head\[t\]);/);/'
mutant attn.cu 'attn_*' 'naive: only the first columns of a wide head' 's/p.column = (int)blockIdx.z \* CHUNK;/p.column = 0;/'
mutant attn.cu 'attn_forward' 'naive: t0 is off by one' 's/t = t0 + p.row/t = t0 + 1 + p.row/'
mutant attn.cu 'attn_backward' 'naive: no barrier before dk, dv read their weights' '/gradient\[p.lane\] = ds;/{n;d;}'

# --- attention of one query ---
mutant attn_decode.cu 'attn_forward' 'decode: the last key is left out' 's/end = min(first + keys, length)/end = min(first + keys, length - 1)/'
mutant attn_decode.cu 'attn_forward' 'decode: sums are not rescaled to the new maximum' 's/r.sum\[k\] \* shrink + p/r.sum[k] + p/'
mutant attn_decode.cu 'attn_forward' 'decode: groups are not rescaled to the maximum' 's/= weight \* r.sum\[i\];/= r.sum[i];/'
mutant attn_decode.cu 'attn_forward' 'decode: pieces are not rescaled to the maximum' 's/shared\[tid\] = weight;/shared[tid] = 1.0f;/'
mutant attn_decode.cu 'attn_forward' 'decode: a piece is left out' 's/p < pieces; p++/p < pieces - (pieces > 1); p++/'
mutant attn_decode.cu 'attn_forward' 'decode: the total of the first piece' 's/weight \* piece\[HS + 1\]/weight * head[HS + 1]/'
mutant attn_decode.cu 'attn_forward' 'decode: no barrier before the groups are added' '/(groups, HS)/{n;d;}'
mutant attn_decode.cu 'attn_forward' 'decode: no barrier before the weights are read' '/shared\[tid\] = weight;/{n;d;}'
mutant attn_decode.cu 'attn_forward' 'decode: all heads count in one place' 's/last_to_arrive(done + blockIdx.y, /last_to_arrive(done, /'
mutant attn_decode.cu 'attn_forward' 'decode: lse without the maximum' 's/= max + logf(total);/= logf(total);/'
mutant kernel.cuh/attn_decode.cu 'attn_forward' 'decode: no barrier before arriving' '/__syncthreads(); .* what this block/d'

# --- attention on tensor cores ---
mutant attn_flash.cu 'attn_*' 'mask: the diagonal is masked, too' 's/if (first_key + column_of(n, i) > first_query/if (first_key + column_of(n, i) >= first_query/'
mutant attn_flash.cu 'attn_forward' 'forward: no mask in tiles that cross the diagonal' '/attn_forward_flash_kernel/,/^}/s/if (first_key + STEP - 1 > first_row) mask_keys/if (first_key > first_row) mask_keys/'
mutant attn_flash.cu 'attn_backward' 'dq: no mask in tiles that cross the diagonal' '/attn_backward_dq_flash_kernel/,/^}/s/if (first_key + STEP - 1 > first_row) mask_keys/if (first_key > first_row) mask_keys/'
mutant attn_flash.cu 'attn_forward' 'softmax: what was summed is not rescaled' 's/state.sum\[m\]\[h\] \* shrink + sum/state.sum[m][h] + sum/'
mutant attn_flash.cu 'attn_forward' 'softmax: the maximum of a lane, not of the row' 's/max = quad_max(max);/;/'
mutant attn_flash.cu 'attn_*' 'tiles: rows after the end are read' 's/bool valid = first + r < limit;/bool valid = true;/'
mutant attn_flash.cu 'attn_*' 'tiles: a row too many is stored' '/void store_rows/,/^}/s/if (first + r < limit)$/if (first + r <= limit)/'
mutant attn_flash.cu 'attn_backward' 'dq: D reads rows after the end' '/void dot_rows/,/^}/s/if (first + r < limit)$/if (first + r < limit + 16)/'
mutant attn_flash.cu 'attn_forward' 'forward: a step does not wait for its tile' '/attn_forward_flash_kernel/,/^}/s/cp_async_wait<0>();/cp_async_wait<1>();/'
mutant attn_flash.cu 'attn_backward' 'dq: a step does not wait for its tile' '/attn_backward_dq_flash_kernel/,/^}/s/cp_async_wait<0>();/cp_async_wait<1>();/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: a step does not wait for its tile' '/attn_backward_dkv_flash_kernel/,/^}/s/cp_async_wait<0>();/cp_async_wait<1>();/'
mutant attn_flash.cu 'attn_forward' 'forward: no barrier at a step' '/attn_forward_flash_kernel/,/^}/{/cp_async_wait<0>();/{n;d;};}'
mutant attn_flash.cu 'attn_backward' 'dq: no barrier at a step' '/attn_backward_dq_flash_kernel/,/^}/{/cp_async_wait<0>();/{n;d;};}'
mutant attn_flash.cu 'attn_backward' 'dk, dv: no barrier at a step' '/attn_backward_dkv_flash_kernel/,/^}/{/cp_async_wait<0>();/{n;d;};}'
mutant attn_flash.cu 'attn_forward' 'forward: the next tile overwrites the current' '/attn_forward_flash_kernel/,/^}/s/int next = (step + 1) % 2/int next = step % 2/'
mutant attn_flash.cu 'attn_backward' 'dq: the next tile overwrites the current' '/attn_backward_dq_flash_kernel/,/^}/s/int next = (step + 1) % 2/int next = step % 2/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: the next tile overwrites the current' '/attn_backward_dkv_flash_kernel/,/^}/s/int next = (step + 1) % 2/int next = step % 2/'
mutant attn_flash.cu 'attn_backward' 'dq: the accumulator is not cleared' 's/clear<M, HS>(dq);/;/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: the accumulator is not cleared' 's/clear<M, HS>(dv);/;/'
mutant attn_flash.cu 'attn_*' 'products: scores add to those of the step before' 's/clear<M, STEP>(s);/;/'
mutant attn_flash.cu 'attn_forward' 't0 is ignored' 's/first_query = t0 + (int)/first_query = (int)/'
mutant attn_flash.cu 'attn_forward' 'softmax: the wrong lanes share a row' '/float quad_sum/,/^}/s/return v + __shfl_xor_sync(ALL_LANES, v, 2);/return v + __shfl_xor_sync(ALL_LANES, v, 4);/'
mutant attn_flash.cu 'attn_forward' 'lse without the scale' 's/state.max\[m\]\[h\] \* scale + logf(sum)/state.max[m][h] + logf(sum)/'
mutant attn_flash.cu 'attn_*' 'fragments: rows and columns of b change places' '/load_b_transposed(/,/^}/s/lane % 8 + lane \/ 16 \* 8) \* PITCH<HS> + k + lane \/ 8 % 2 \* 8/lane % 16) * PITCH<HS> + k + lane \/ 16 * 8/'
mutant attn_flash.cu 'attn_backward' 'dq: D is not subtracted' 's/p \* (dp\[m\]\[n\]\[i\] - D\[m\]\[i \/ 2\])/p * dp[m][n][i]/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: no mask on the diagonal' 's/bool on_diagonal = .*/bool on_diagonal = false;/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: D of the wrong query' 's/s.D = D\[t\];/s.D = D[0];/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: lse in the wrong base' 's/s.base = lse\[t\] \* LOG2_E/s.base = lse[t]/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: statistics of the step before' 's/= statistics\[step % 2\]/= statistics[first_step % 2]/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: no scale' 's/dk\[m\]\[n\]\[i\] \*= scale;/dk[m][n][i] *= 1.0f;/'
mutant attn_flash.cu 'attn_backward' 'dk, dv: the first step of queries is skipped' 's/for (int step = first_step; step/for (int step = first_step + 1; step/'

# --- attention on Hopper ---
mutant attn_hopper.cu 'attn_forward' 'wrong phase of a full tile' '/auto wait_for_tile/,/};/s/at.parity);/at.parity ^ 1);/'
mutant attn_hopper.cu 'attn_forward' 'wrong phase of the queries' 's/mbarrier_wait(shared.queries_full, query_parity);/mbarrier_wait(shared.queries_full, 0);/'
mutant attn_hopper.cu 'attn_forward' 'the queries are not waited for' '/mbarrier_wait(shared.queries_full, query_parity);/d'
mutant attn_hopper.cu 'attn_forward' 'queries are overwritten in use' '/mbarrier_wait(shared.queries_empty, query_parity);/d'
mutant attn_hopper.cu 'attn_forward' 'tiles are overwritten in use' '/mbarrier_wait(&shared.empty\[at.slot\], at.parity ^ 1);/d'
mutant attn_hopper.cu 'attn_forward' 'keys are never released' '/release(keys_empty);/d'
mutant attn_hopper.cu 'attn_forward' 'keys are released before they are read' '/release(keys_empty);/d' 's/            pass_turn(group);/            pass_turn(group); release(keys_empty);/'
mutant attn_hopper.cu 'attn_forward' 'scores are not waited for' 's/wgmma_wait<1>();/wgmma_wait<2>();/'
mutant attn_hopper.cu 'attn_forward' 'sums are not waited for' '/settle(/{n;s/wgmma_wait<0>/wgmma_wait<1>/;}'
mutant attn_hopper.cu 'attn_forward' 'the other group is let in a second time' 's/if (group == 0) take_turn(group);.*/if (group == 1) pass_turn(group), pass_turn(group);/'
mutant attn_hopper.cu 'attn_forward' 'nobody has the first turn' 's/    if (group == 1) pass_turn(group);/    ;/'
mutant attn_hopper.cu 'attn_forward' 'more registers than there are' 's/registers_grow<CONSUMER_REGISTERS>/registers_grow<248>/'
mutant attn_hopper.cu 'attn_forward' 'the wrong swizzle' 's/ROWS, SLAB, SWIZZLE_128)/ROWS, SLAB, SWIZZLE_64)/'
mutant attn_hopper.cuh/attn_hopper.cu 'attn_forward' 'the wrong swizzle of an operand' '/void multiply_add/,/^}/s/SWIZZLE_128/SWIZZLE_64/'
mutant attn_hopper.cuh/attn_hopper.cu 'attn_forward' 'second slab of keys: the first again' 's/wgmma_descriptor(b + slab \* B_ROWS \* SLAB + column,/wgmma_descriptor(b + column,/'
mutant attn_hopper.cuh/attn_hopper.cu 'attn_forward' 'second slab is not loaded' 's/col + slab \* SLAB, full)/col, full)/'
mutant attn_hopper.cu 'attn_forward' 'batches: rows of the first one' 's/int b = place.head \/ task.NH, col/int b = 0, col/'
mutant attn_hopper.cu 'attn_forward' 'mask: the diagonal is masked, too' 's/column_of(j, i) > first_row + row_of/column_of(j, i) >= first_row + row_of/'
mutant attn_hopper.cu 'attn_forward' 'mask: the key after the query is seen' 's/column_of(j, i) > first_row + row_of/column_of(j, i) > 1 + first_row + row_of/'
mutant attn_hopper.cu 'attn_forward' 'mask: both warpgroups use that of the first' 's/mask_keys(s, group \* 64);/mask_keys(s, 0);/'
mutant attn_hopper.cu 'attn_forward' 'sums are not rescaled' '/acc\[i\] \*= shrink/s/shrink\[i \/ 2 % 2\]/1.0f/'
mutant attn_hopper.cu 'attn_forward' 'the normaliser is not rescaled' 's/state.sum\[h\] \* shrink\[h\] + sum/state.sum[h] + sum/'
mutant attn_hopper.cu 'attn_forward' 'rows change their factors' '/acc\[i\] \*= shrink/s/shrink\[i \/ 2 % 2\]/shrink[i % 2]/'
mutant attn_hopper.cu 'attn_forward' 'the maximum of two lanes, not of the row' '/max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 2));/d'
mutant attn_hopper.cu 'attn_forward' 'sums of the tile before are added to' '/step < last - 1);/s/step < last - 1/true/'
mutant attn_hopper.cu 'attn_forward' 'sums are begun anew in the last step' 's/multiply_add<STEP>(acc, p, values, last > 0);/multiply_add<STEP>(acc, p, values, false);/'
mutant attn_hopper.cuh/attn_hopper.cu 'attn_forward' 'a row too many is stored' '/void store_rows/,/^}/s/if (first + r < limit)$/if (first + r <= limit)/'
mutant attn_hopper.cu 'attn_forward' 'lse of a row too many' 's/t < task.length)/t <= task.length)/'
mutant attn_hopper.cu 'attn_forward' 'lse without the scale' 's/state.max\[i\] \* task.scale + logf/state.max[i] + logf/'
mutant attn_hopper.cuh/attn_hopper.cu 'attn_forward' 'a block does only its first tile' '/place = place_of_tile(list, number);/s/$/ first = count;/'
mutant attn_hopper.cuh/attn_hopper.cu 'attn_forward' 'tiles beyond the list' '/if (number >= count) continue;/d'
mutant attn_hopper_backward.cu 'attn_backward' 'wrong phase of the own tiles' '/void consume_keys/,/^}/s/mbarrier_wait(shared.own_full, own_parity);/mbarrier_wait(shared.own_full, 0);/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: wrong phase of a full slot' '/void consume_keys/,/^}/s/at.parity);/at.parity ^ 1);/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: wrong phase of a full slot' '/void consume_queries/,/^}/s/at.parity);/at.parity ^ 1);/'
mutant attn_hopper_backward.cu 'attn_backward' 'own tiles are overwritten in use' '/mbarrier_wait(shared.own_empty, own_parity);/d'
mutant attn_hopper_backward.cu 'attn_backward' 'slots are overwritten in use' '/mbarrier_wait(&shared.empty\[at.slot\], at.parity ^ 1);/d'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: slots are never released' '/void consume_keys/,/^}/s/if (before >= 0) release(/if (false) release(/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: slots are released while keys are read' '/void consume_keys/,/^}/s/if (before >= 0) release(&shared.empty\[before\]);/release(\&shared.empty[slot]);/' '/void consume_keys/,/^}/s/release(&shared.empty\[before\]);/;/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: slots are released while queries are read' 's/if (before >= 0) release_converged(&shared.empty\[before\]); .* lanes have.*/release_converged(\&shared.empty[slot]);/' 's/release_converged(&shared.empty\[before\]); .* keys beyond.*/;/'
mutant attn_hopper_backward.cu 'attn_backward' 'skipped slots are not released' '/if (step < diagonal)/,/continue/s/release_converged(.*/;/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: statistics are released while lanes read them' 's/release_converged(&shared.empty\[before\]); \(.* lanes\)/release(\&shared.empty[before]); \1/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: scores are not waited for' '/void consume_keys/,/^}/s/wgmma_wait<1>();/wgmma_wait<2>();/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: dP is not waited for' '/settle(s/{n;s/wgmma_wait<0>/wgmma_wait<1>/;}'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: dP is not waited for' 's/wgmma_wait<OPERANDS - 1>/wgmma_wait<OPERANDS>/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: P is overwritten in use' 's/constexpr int OPERANDS = .*/constexpr int OPERANDS = 1;/' 's/wgmma_wait<OPERANDS - 1>/wgmma_wait<1>/'
mutant attn_hopper_backward.cu 'attn_backward' 'bytes of the statistics are not expected' 's/(own == KEYS ? STEP \* (int)sizeof(query_statistic) : 0)/0/'
mutant attn_hopper_backward.cu 'attn_backward' 'the wrong swizzle of dout' 's/B, T, C, STEP, SLAB, SWIZZLE_128)/B, T, C, STEP, SLAB, SWIZZLE_64)/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: the diagonal is masked, too' 's/column_of(j, i) > row_of(i \/ 2)) p/column_of(j, i) >= row_of(i \/ 2)) p/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: the key after the query is seen' 's/column_of(j, i) < row_of(h)) e/column_of(j, i) + 1 < row_of(h)) e/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: the mask is of one warpgroup' '/void consume_keys/,/^}/s/step == diagonal/step == 2 * steps.tile/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: the mask is of one warpgroup' '/void consume_queries/,/^}/s/step == diagonal/step == 2 * steps.tile/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: a tile too few of keys' 's/return {tile, 0, min(2 \* tile + 2, all)};/return {tile, 0, min(2 * tile + 1, all)};/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: the sum is not cleared' '/void consume_keys/,/^}/s/clear(dq);/;/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: a sum is not cleared' '/void consume_queries/,/^}/s/clear(dv);/;/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: D is not subtracted' 's/dp\[i\] - statistic\[i \/ 2 % 2\].D/dp[i]/'
mutant attn_hopper_backward.cu 'attn_backward' 'dq: D of the other row' 's/statistic\[i \/ 2 % 2\].D/statistic[i % 2].D/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk, dv: D of the wrong query' 's/statistics\[column_of(j, i)\].D/statistics[column_of(j, 0)].D/'
mutant attn_hopper_backward.cu 'attn_backward' 'lse in the wrong base' 's/lse\[(b \* NH + h) \* length + t\] \* LOG2_E/lse[(b * NH + h) * length + t]/'
mutant attn_hopper_backward.cu 'attn_backward' 'statistics of rows beyond the end' '/attn_backward_statistics_kernel/,/^}/s/if (t < length) {/if (true) {/'
mutant attn_hopper_backward.cu 'attn_backward' 'statistics: half of the columns' 's/for (int offset = lanes \/ 2; offset > 0; offset \/= 2)/for (int offset = lanes \/ 4; offset > 0; offset \/= 2)/'
mutant attn_hopper_backward.cu 'attn_backward' 'no scale of dk' 's/place, 1, first, dk, task.scale/place, 1, first, dk, 1.0f/'
mutant attn_hopper_backward.cu 'attn_backward' 'dk and dv change places' 's/place, 1, first, dk/place, 2, first, dk/' 's/place, 2, first, dv/place, 1, first, dv/'
mutant attn_hopper_backward.cu 'attn_backward' 'batches: rows of the first one' 's/int b = place.head \/ task.NH, col/int b = 0, col/'
mutant attn_hopper.cuh/attn_hopper_backward.cu 'attn_backward' 'a row too many is stored' '/void store_rows/,/^}/s/if (first + r < limit)$/if (first + r <= limit)/'
mutant attn_hopper.cuh/attn_hopper_backward.cu 'attn_backward' 'staging is not free yet' '/__syncwarp(); .* rows of the tile before are out/d'
mutant attn_hopper.cuh/attn_hopper_backward.cu 'attn_backward' 'staging is read too early' '/pack_bf16(acc\[at\] \* scale\[h\]/{n;n;d;}'

# --- loss ---
mutant loss.cu 'loss_forward' 'a column of padding counts' 's/if (v + k < V) max/if (v + k < V + 1) max/' 's/if (v + k < V) sum/if (v + k < V + 1) sum/'
mutant loss.cu 'loss_forward' 'the maximum is not subtracted' 's/float max = s.max;/float max = 0.0f;/' 's/if (v + k < V) max = .*/;/'
mutant loss.cu 'loss_forward' 'the copy to shared memory is not waited for' '/cp_async_wait<0>();/d'
mutant loss.cu 'loss_forward' 'the gradient of the column beside the target' 's/if (v + k == target)/if (v + k == target + 1)/'
mutant loss.cu 'loss_forward' 'naive: ignored rows keep their logits' '/loss_forward_naive_kernel(/,/^}/s/if (write_dlogits) zero_row.*/;/'
mutant loss.cu 'loss_forward' 'naive: target -1 is not ignored' '/loss_forward_naive_kernel(/,/^}/s/if (target < 0) {/if (target < -1) {/'
mutant loss.cu 'loss_forward' 'shared: ignored rows keep their logits' '/loss_forward_shared_kernel(/,/^}/s/if (write_dlogits) zero_row.*/;/'
mutant loss.cu 'loss_forward' 'shared: target -1 is not ignored' '/loss_forward_shared_kernel(/,/^}/s/if (target < 0) {/if (target < -1) {/'
mutant loss.cu 'loss_forward' 'online: ignored rows keep their logits' '/loss_forward_online_kernel(/,/^}/s/if (write_dlogits) zero_row.*/;/'
mutant loss.cu 'loss_forward' 'online: target -1 is not ignored' '/loss_forward_online_kernel(/,/^}/s/if (target < 0) {/if (target < -1) {/'
mutant loss.cu 'loss_forward' 'naive: the target is read while it is overwritten' '/__syncthreads(); .* thread 0 has read/d'
mutant loss.cu 'loss_forward' 'online: the target is read after the barriers' '/float at_target = /d' 's/ - at_target;/ - to_float(x[target]);/'
mutant kernel.cuh/loss.cu 'loss_forward' 'block_max: scratch is not free on return' '/float block_max/,/^}/{/lane < warps/{n;d;};}'

# --- optim ---
mutant optim.cu 'adamw' 'a NaN norm is taken for a number' 's/if (!(norm <= FLT_MAX))/if (norm > FLT_MAX)/'
mutant optim.cu 'adamw' 'no clipping' 's/norm > s.max_norm ? s.max_norm/norm > s.max_norm ? norm/'
mutant optim.cu 'adamw' 'the second moment is not corrected' 's/sqrtf(v \* s.v_scale)/sqrtf(v)/'
mutant optim.cu 'adamw' 'the first moment is not corrected' 's/(float)((double)a->lr \/ (1.0 - std::pow((double)a->beta1, (double)a->step)))/a->lr/'
mutant optim.cu 'adamw' 'the step counts from 0' 's/std::pow((double)a->beta2, (double)a->step)/std::pow((double)a->beta2, (double)(a->step - 1))/'
mutant optim.cu 'adamw' 'vec: clipping is left out of the gradient' '/adamw_vec_kernel/,/^}/s/g\[k\] \* clip/g[k]/'
mutant optim.cu 'adamw' 'vec: master weights are not kept' 's/if (master) store_four(master, w, i, n);/;/'
mutant optim.cu 'stochastic*' 'the random numbers are the same in every step' 's/RNG_ROUND + ((uint64_t)a->step << 8)/RNG_ROUND/'
mutant optim.cu 'adamw' 'no weight decay' 's/return w \* s.keep - /return w - /'
mutant optim.cu 'adamw' 'the last elements are not stored (float)' '/store_four(float/,/^}/s/if (i + k < n) p\[i + k\] = x\[k\];/if (i + k < n - 1) p[i + k] = x[k];/'
mutant optim.cu 'adamw' 'the last elements are not stored (bf16)' '/store_four(bf16/,/^}/s/if (i + k < n) p\[i + k\] = x\[k\];/if (i + k < n - 1) p[i + k] = x[k];/'
mutant optim.cu 'cast' 'the last elements are not stored (bf16)' '/store_four(bf16/,/^}/s/if (i + k < n) p\[i + k\] = x\[k\];/if (i + k < n - 1) p[i + k] = x[k];/'
mutant optim.cu 'stochastic*' 'stochastic rounding that rarely rounds up' 's/random & 0xffffu/random \& 0x7fffu/'
mutant optim.cu 'stochastic*' 'all four elements share a random number' 's/round_stochastic<T>(w\[k\], random.v\[k\])/round_stochastic<T>(w[k], random.v[0])/'
mutant optim.cu 'sumsq' 'the elements after the last vector are left out' 's/if (thread < n % size)/if (thread < n % size - 1)/'
mutant optim.cu 'sumsq' 'naive: in fp32' '/sumsq_naive_kernel/,/^}/s/double sum = 0.0;/float sum = 0.0f;/'
mutant kernel.cuh/optim.cu 'sumsq' 'the last block but one adds the sums' 's/return before\[0\] == count - 1;/return before[0] == (count > 1 ? count - 2 : 0);/'
mutant kernel.cuh/optim.cu 'sumsq*' 'the count of blocks is not reset' 's/atomicInc(done, count - 1)/atomicAdd(done, 1u)/'
mutant kernel.cuh/optim.cu 'sumsq' 'no barrier before the count is read' '/bool last_to_arrive/,/^}/{/^    __syncthreads();$/d;}'
mutant kernel.cuh/optim.cu 'sumsq' 'arrival is not ordered after the sum' '/__threadfence(); .* before its arrival/d'
mutant optim.cu 'sumsq' 'every block but the last adds, too' 's/if (!last_to_arrive(done, gridDim.x)) return;/last_to_arrive(done, gridDim.x);/'
mutant optim.cu 'sumsq*' 'only the first 256 blocks are added' 's/b < gridDim.x; b += SUM_BLOCK/b < gridDim.x \&\& b < SUM_BLOCK; b += SUM_BLOCK/'
mutant optim.cu 'sum' 'in fp32' '/void sum_kernel/,/^}/s/double sum = 0.0;/float sum = 0.0f;/'
mutant optim.cu 'sum*' 'no barrier in the tree' '/scratch\[tid\] += scratch\[tid + width\];/{n;d;}'
mutant optim.cu 'randn' 'sine and cosine change places' 's/normal\[k\] = radius \* cosf(angle);/normal[k] = radius * sinf(angle);/' 's/normal\[k + 1\] = radius \* sinf(angle);/normal[k + 1] = radius * cosf(angle);/'
mutant optim.cu 'cast' 'the last elements are left out' '/cast_vec_kernel/,/^}/s/if (i >= n) return;/if (i + FOUR > n) return;/'

# --- matmul ---
mutant matmul.cu 'matmul_*' 'naive: no barrier before the tile is read' '/tile_b\[kb\]\[cb\] = /{n;n;d;}'
mutant matmul.cu 'matmul_*' 'naive: no barrier before the tile is overwritten' '/sum\[i\] += tile_a/{n;d;}'
mutant matmul.cu 'matmul_*' 'bias gradient: a chunk is left out' 's/for (int64_t i = 0; i < chunks; i++) sum/for (int64_t i = 0; i < chunks - 1 || i == 0; i++) sum/'
mutant matmul.cu 'matmul_backward' 'bias gradient: no barrier before the sums are read' '/rows\[threadIdx.y\]\[i \* SUM_COLS + threadIdx.x\] = sum\[i\];/{n;d;}'
mutant matmul.cu 'matmul_backward' 'bias gradient: stored, not added' 's/float sum = accumulate ? to_float(out\[col\]) : 0.0f;/float sum = 0.0f;/'
mutant matmul.cu 'matmul_*' 'naive: the last elements of the sum are left out' 's/row0 + ra < M \&\& k0 + ka < K ?/row0 + ra < M \&\& k0 + ka < K - 1 ?/'
mutant matmul.cu 'matmul_backward' 'naive: weight gradients are stored, not added' 's/if (e.accumulate) v += .*/;/'
mutant matmul.cu 'matmul_forward' 'naive: no bias' 's/if (e.bias) v += .*/;/'
mutant matmul.cu 'matmul_backward' 'cublaslt: weight gradients are stored, not added' '/void backward_lt_parameters/,/^}/s/ accumulate};/ false};/'

# --- matmul in fp8 ---
mutant fp8.cuh/matmul.cu 'matmul_*' 'the scale is inverted' 's/\*out.descale = 1.0f \/ scale;/*out.descale = scale;/'
mutant fp8.cuh/matmul.cu 'matmul_*' 'copies: two columns change places' 's/tile\[col + i\]\[group\] = word/tile[col + (i ^ 1)][group] = word/'
mutant fp8.cuh/matmul.cu 'matmul_backward' 'copies: a transposed row starts four elements late' 's/= tile\[c\]\[lane\];/= tile[c][(lane + 1) % WARP_SIZE];/'
mutant fp8.cuh/matmul.cu 'matmul_backward' 'copies: the bytes of a word are in reverse order' 's/<< 8 \* r;/<< (24 - 8 * r);/'
mutant fp8.cuh/matmul.cu 'matmul_*' 'copies: the last four rows are left out' 's/if (row0 + 4 \* group >= N || /if (row0 + 4 * group >= N - 4 || /'
mutant fp8.cuh/matmul.cu 'matmul_*' 'copies: the last eight columns are left out' 's/|| col0 + col >= C) continue;/|| col0 + col >= C - 8) continue;/'
mutant fp8.cuh/matmul.cu 'matmul_backward' 'copies: transposed rows run into the next' 's/if (col0 + c >= C || row0 + 4 \* lane >= N) continue;/if (col0 + c >= C) continue;/'
mutant fp8.cuh/matmul.cu 'matmul_backward' 'copies: no barrier before the tile is read' '/if (!out.transposed) return;/{n;d;}'
mutant fp8.cuh/matmul.cu 'matmul_*' 'maximum: the last part is left out' 's/threadIdx.x < largest.count ?/threadIdx.x + 1 < largest.count ?/'
mutant fp8.cuh/matmul.cu 'matmul_*' 'maximum: of the first warp only' 's/lane < warps ? scratch\[lane\] : 0u/scratch[0]/'
mutant fp8.cuh/matmul.cu 'matmul_*' 'maximum: no barrier before the warps are compared' '/if (lane == 0) scratch\[warp\] = v;/{n;d;}'
mutant fp8.cuh/matmul.cu 'matmul_*' 'maximum: with its sign' 's/return bits & 0x7fffffffu;/return bits;/'
mutant fp8.cuh/matmul.cu 'matmul_*' 'maximum: the last vector is left out' 's/for (; i < count; i += step) {/for (; i < count - W; i += step) {/'
mutant matmul.cu 'matmul_backward' 'naive, fp8: gradients in the format of activations' 's/: fp8_through_device<FP8_E5M2>(v, scale)/: fp8_through_device<FP8_E4M3>(v, scale)/'
mutant fp8.cuh/test_cuda_fp8.cu 'conversions' 'beyond the range: no saturation' 's/make_float2(lo, hi), __NV_SATFINITE/make_float2(lo, hi), __NV_NOSAT/'
mutant fp8.cuh/test_cuda_fp8.cu 'scales' 'a scale that just fits is halved' 's/> 0x600000u/>= 0x600000u/'
mutant fp8.cuh/test_cuda_fp8.cu 'scales' 'an infinity has a scale' 's/if (amax >= 0x7f800000u)/if (amax > 0x7f800000u)/'
mutant matmul.cu 'matmul_forward' 'fp8: the scale of inp for the weight' '/void forward_fp8/,/^}/s/copy_operand((cudaStream_t)env->stream, &s.weight);/s.weight.largest = s.inp.largest, copy_operand((cudaStream_t)env->stream, \&s.weight);/'
mutant matmul.cu 'matmul_backward' 'fp8: the scale of dout for inp' '/void backward_fp8/,/^}/s/copy_operand(stream, &s.inp);/s.inp.largest = s.dout.largest, copy_operand(stream, \&s.inp);/'
mutant matmul.cu 'matmul_backward' 'fp8: the scale of inp beside the weight' '/void backward_fp8_input/,/^}/s/s->weight.copies.descale,/s->inp.copies.descale,/'
mutant matmul.cu 'matmul_backward' 'fp8: maximum of the first chunk of rows only' 's/maxima\[tid \* gridDim.x + blockIdx.x\]/maxima[blockIdx.x]/'
mutant matmul.cu 'matmul_backward' 'fp8: maximum of the first columns only' 's/s->dout.largest.count = blocks;/s->dout.largest.count = 1;/'
mutant matmul.cu 'matmul_backward' 'fp8: weight gradients are stored, not added' '/bool backward_fp8_weight/,/^}/s/ accumulate,$/ false,/'
mutant matmul.cu 'matmul_backward' 'fp8: the derivative of the activation is forgotten' '/void backward_fp8_input/,/^}/s/if (pre) gelu_backward_pass.*/;/'

rm -rf "$dir"
echo "$killed passed, $failed failed"
[ "$failed" -eq 0 ]
