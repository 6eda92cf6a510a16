package history

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

// replaceWALLink points the copied data directory to its own WAL.
func (f *fork) replaceWALLink() error {
	link := filepath.Join(f.data, "pg_wal")
	info, err := os.Lstat(link)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return core.Errorf(core.KindPrecondition, "", "the WAL of volume %s is inside the volume", f.Parent.Volume)
	}
	target, err := filepath.Abs(f.to)
	if err != nil {
		return err
	}
	tmp := link + ".tmp"
	if err := removeFile(tmp); err != nil {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := f.Dirs.own(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, link)
}

// readControl reads the child's control file. A copy that is not atomic may have caught it half-written: then it is taken
// from the parent again, which in backup mode is as good, because replay starts at the label.
func (f *fork) readControl(ctx context.Context) (ControlInfo, error) {
	control, err := f.ReadControl(f.data)
	if err == nil || f.Volumes.Atomic() {
		return control, err
	}
	rel := filepath.Join("global", "pg_control")
	for range 10 {
		if ctx.Err() != nil {
			return control, ctx.Err()
		}
		data, readErr := os.ReadFile(filepath.Join(f.Volumes.Path(f.Parent.Volume), rel))
		if readErr != nil {
			return control, readErr
		}
		if err := f.Dirs.writeFile(filepath.Join(f.data, rel), data); err != nil {
			return control, err
		}
		if control, err = f.ReadControl(f.data); err == nil {
			return control, syncPath(filepath.Join(f.data, "global"))
		}
	}
	return control, err
}

// checkTablespaces refuses a cluster with data outside its data directory: a clone would share it.
func checkTablespaces(dataDir string) error {
	entries, err := os.ReadDir(filepath.Join(dataDir, "pg_tblspc"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 {
			return core.Errorf(core.KindUnprocessable, "", "the branch has a tablespace outside its data directory; drop it (DROP TABLESPACE) before branching")
		}
	}
	return nil
}

// backupLabel is what recovery takes from a backup_label file.
type backupLabel struct {
	start    core.LSN
	timeline uint32
}

// readBackupLabel reads the label of a data directory, nil when it has none. The format is that of PostgreSQL's
// build_backup_content: "START WAL LOCATION: 0/2000028 (file …)" and "START TIMELINE: 1".
func readBackupLabel(dataDir string) (*backupLabel, error) {
	data, err := os.ReadFile(filepath.Join(dataDir, "backup_label"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	label := new(backupLabel)
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ": ")
		switch key {
		case "START WAL LOCATION":
			lsn, _, _ := strings.Cut(value, " ")
			if label.start, err = core.ParseLSN(lsn); err != nil {
				return nil, fmt.Errorf("backup_label: %w", err)
			}
		case "START TIMELINE":
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if err != nil {
				return nil, fmt.Errorf("backup_label: %w", err)
			}
			label.timeline = uint32(n)
		}
	}
	if label.start == 0 {
		return nil, errors.New("backup_label names no start")
	}
	return label, sc.Err()
}
