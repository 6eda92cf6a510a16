package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/sdk"
)

// sizes measures what a branch costs by the size of its parent, before and after random updates, and by the parent's depth,
// on each backend with a server of its own.
func sizes(ctx context.Context, o options) error {
	if o.rounds < 1 || o.depth < 1 {
		return errors.New("-rounds and -depth must be 1 or more")
	}
	var rows []row
	for backend := range strings.SplitSeq(o.backends, ",") {
		if os.Geteuid() != 0 && backend != "copy" {
			fmt.Fprintf(os.Stderr, "%s: skipped, needs root to mount a file system\n", backend)
			continue
		}
		got, err := sizesOn(ctx, o, backend)
		if err != nil {
			return fmt.Errorf("%s: %w", backend, err)
		}
		rows = append(rows, got...)
	}
	fmt.Printf("\nBranch, call → first row; %d rounds, %d s of updates on each parent\n\n", o.rounds, o.updates)
	return printRows(rows)
}

func sizesOn(ctx context.Context, o options, backend string) (rows []row, err error) {
	base, err := os.MkdirTemp(o.dir, "bough-size-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	o.storage, o.dir, o.scale = backend, base, 1
	if backend == "reflink" {
		unmount, mountErr := mountXFS(ctx, base, int64(o.smallScale+o.largeScale)*4*16<<20+4<<30)
		if mountErr != nil {
			return nil, mountErr
		}
		defer func() { err = errors.Join(err, unmount()) }()
		o.dir = filepath.Join(base, "xfs")
	}
	if err := os.Chmod(base, 0o755); err != nil {
		return nil, err
	}
	b, err := start(ctx, o)
	if err != nil {
		return nil, err
	}
	defer b.stop()
	var parents [2]*target
	for i, scale := range []int{o.smallScale, o.largeScale} {
		fmt.Fprintf(os.Stderr, "%s: filling %s …\n", backend, gigabytes(scale))
		if parents[i], err = b.create(ctx); err != nil {
			return nil, err
		}
		if err := b.runPgbench(ctx, "-q", "-i", "-s", strconv.Itoa(scale), parents[i].uri); err != nil {
			return nil, err
		}
	}
	compare := func(what, aim, otherWhat string, large, small *target) error {
		var ours, other series
		for range o.rounds { // interleaved: what else the machine does meets both
			for t, list := range map[*target]*series{large: &ours, small: &other} {
				d, err := b.branchOf(ctx, t.project, t.branch)
				if err != nil {
					return err
				}
				*list = append(*list, d)
			}
		}
		rows = append(rows, row{backend + ": " + what, ours.String(), other.String(), otherWhat, ratio(ours, other), aim})
		return nil
	}
	size := func(when string) error {
		for _, t := range parents { // what was written is on the disk, and the parent awake and idle
			if err := errors.Join(b.suspend(ctx, t), b.firstRow(ctx, t.uri)); err != nil {
				return err
			}
		}
		return compare("of "+gigabytes(o.largeScale)+", "+when, "≤ 1.2", "of "+gigabytes(o.smallScale), parents[1], parents[0])
	}
	if err := size("fresh"); err != nil {
		return nil, err
	}
	for _, t := range parents {
		fmt.Fprintf(os.Stderr, "%s: updating …\n", backend)
		if err := b.runPgbench(ctx, "-n", "-c", "8", "-j", "2", "-T", strconv.Itoa(o.updates), t.uri); err != nil {
			return nil, err
		}
	}
	if err := size("after updates"); err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s: nesting …\n", backend)
	line := []*target{parents[0]}
	for range o.depth {
		above := line[len(line)-1]
		made, err := b.client.CreateBranch(ctx, above.project, sdk.BranchCreateRequest{Branch: &sdk.BranchCreate{ParentID: &above.branch}})
		if err != nil {
			return nil, err
		}
		if _, err := b.client.WaitForOperations(ctx, made.Operations, nil); err != nil {
			return nil, err
		}
		line = append(line, &target{project: above.project, branch: made.Branch.ID})
	}
	return rows, compare(fmt.Sprintf("of %s at depth %d", gigabytes(o.smallScale), o.depth), "≤ 1.2", "at depth 1", line[o.depth], line[1])
}

func gigabytes(scale int) string { return fmt.Sprintf("%.1f GB", float64(scale)*0.015) }

// mountXFS mounts a new XFS at DIR/xfs, in a file that takes no more space than is used.
func mountXFS(ctx context.Context, dir string, size int64) (unmount func() error, err error) {
	image, at := filepath.Join(dir, "xfs.img"), filepath.Join(dir, "xfs")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(at, 0o755)); err != nil {
		return nil, err
	}
	for _, argv := range [][]string{{"mkfs.xfs", "-q", image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", argv[0], err, out)
		}
	}
	return func() error { return unix.Unmount(at, 0) }, nil
}
