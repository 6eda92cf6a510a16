package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/service"
)

// poolCommand looks after the storage pool on the server's machine.
func poolCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Show what uses the storage, and make it larger",
		Long: `Look after the storage pool. This works on the server's machine, as the user that runs the server, whether or not it
runs.`,
	}
	dataDirFlag(cmd.PersistentFlags(), &dir)
	cmd.AddCommand(poolStatusCommand(&dir), poolGrowCommand(&dir))
	return cmd
}

func poolStatusCommand(dir *string) *cobra.Command {
	var url string
	var exclusive, all, asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how full the storage is and what uses it",
		Long: `Show how full the storage is and what uses it, the largest branches first.

DATA is what a branch's files hold, as if it were alone; branches share most of it with their parents. --exclusive asks the
file system what is shared: OWN is then what deleting the branch would give back, without what it shares with its own
history, which goes with it (bough history). That reads the lists of blocks of every file, at the lowest priority; it can
take minutes for hundreds of busy branches.`,
		Example: "  bough pool status\n  bough pool status --exclusive --all\n  bough pool status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := service.LookPool(cmd.Context(), *dir, url, exclusive)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			}
			return printPool(st, all)
		},
	}
	f := cmd.Flags()
	f.StringVar(&url, "database-url", "", "control database, when the server was given one")
	f.BoolVar(&exclusive, "exclusive", false, "find out what branches share")
	f.BoolVar(&all, "all", false, "show every branch, not only the 20 largest")
	f.BoolVar(&asJSON, "json", false, "print JSON, with every branch")
	return cmd
}

const poolTop = 20

func printPool(st service.PoolStatus, all bool) error {
	kind := st.Backend
	if st.Image != nil {
		kind += ", in an image"
		if st.Image.Preallocated {
			kind += " whose space is reserved"
		}
	}
	fmt.Printf("backend           %s\nlevel             %s\n", kind, levelText(st.Level))
	if i := st.Image; i != nil {
		limit := "as far as the disk has room"
		if i.Limit > 0 {
			limit = "up to " + size(i.Limit)
		}
		fmt.Printf("image             %s, of which %s are taken from the disk; grows by itself %s\n", size(i.Size), size(i.Allocated), limit)
	}
	if st.Pool == nil {
		fmt.Println("pool              not mounted; the server mounts it when it starts")
	} else {
		printRoom("pool", *st.Pool)
	}
	if st.Metadata != nil && st.Metadata.Level != "ok" {
		printRoom("pool's metadata", *st.Metadata)
	}
	printRoom("disk", st.Disk)
	fmt.Printf("WAL               %s (segments that branches share counted once)\n", size(st.WAL))
	if st.ControlDB > 0 {
		fmt.Printf("control database  %s\n", size(st.ControlDB))
	}
	fmt.Printf("logs              %s\n", size(st.Logs))
	if n := len(st.History); n > 0 {
		own, known := int64(0), true
		for _, u := range st.History {
			if known = known && u.DataExclusive != nil; known {
				own += *u.DataExclusive
			}
		}
		text := ""
		if known {
			text = ", which alone hold " + size(own)
		}
		fmt.Printf("history           %d snapshots of branches' pasts%s; see bough history\n", n, text)
	}
	if st.Staged > 0 {
		fmt.Printf("in the making     %d volumes\n", st.Staged)
	}
	if st.Deleted > 0 {
		fmt.Printf("being cleaned     %d deleted volumes, whose space is still used\n", st.Deleted)
	}
	if !st.Names {
		fmt.Println("\nThe control database does not run, so there are ids instead of names.")
	}
	fmt.Println()
	w := table("PROJECT", "BRANCH", "DATA", "OWN", "WAL", "OWN WAL", "")
	shown := st.Branches
	if !all && len(shown) > poolTop {
		shown = shown[:poolTop]
	}
	for _, u := range shown {
		note := ""
		if u.Deleting {
			note = "being deleted"
		}
		poolRow(w, u, named(u.Project, u.ProjectID), named(u.Branch, u.BranchID), note)
	}
	for _, u := range st.Templates {
		poolRow(w, u, "–", u.Volume, "new projects start from it")
	}
	for _, u := range st.Unknown {
		poolRow(w, u, "–", u.Volume, "unknown to the control database")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if n := len(st.Branches) - len(shown); n > 0 {
		fmt.Printf("… and %d smaller ones; --all shows them\n", n)
	}
	return nil
}

func poolRow(w interface{ Write([]byte) (int, error) }, u service.PoolUser, project, branch, note string) {
	own := "–"
	if u.DataExclusive != nil {
		own = size(*u.DataExclusive)
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", project, branch, size(u.Data), own, size(u.WAL), size(u.WALExclusive), note)
}

func named(name, id string) string {
	switch {
	case id == "":
		return "–"
	case name == "":
		return id
	}
	return name + " (" + id + ")"
}

func levelText(level string) string {
	switch level {
	case "ok":
		return "ok"
	case "refuse":
		return "nearly full: new branches are refused"
	}
	return "full: computes are suspended"
}

func printRoom(name string, r service.PoolRoom) {
	note := ""
	if r.Level != "ok" {
		note = "  ← " + levelText(r.Level)
	}
	fmt.Printf("%-17s %s free of %s; new branches need %s, running computes %s%s\n", name, size(r.Free), size(r.Total), size(r.Reserve), size(r.Critical), note)
}

// size is a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

func poolGrowCommand(dir *string) *cobra.Command {
	var by, to bytesValue
	cmd := &cobra.Command{
		Use:   "grow",
		Short: "Make the pool image larger",
		Long: `Make the pool image larger, also while the server and computes use it. It grows by itself, too, while the disk has
room and up to the server's --storage-limit, which does not bind this command. An image cannot shrink.`,
		Example: "  bough pool grow --by 20GiB\n  bough pool grow --to 200GiB",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if by == 0 && to == 0 {
				return core.Invalidf("name a size larger than 0: --by 20GiB or --to 200GiB")
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			before, after, err := service.GrowPool(cmd.Context(), *dir, int64(by), int64(to), log)
			if err == nil {
				fmt.Printf("The pool image has grown from %s to %s.\n", size(before), size(after))
			}
			return err
		},
	}
	cmd.Flags().Var(&by, "by", "how much larger, for example 20GiB")
	cmd.Flags().Var(&to, "to", "the new size, for example 200GiB")
	cmd.MarkFlagsOneRequired("by", "to")
	cmd.MarkFlagsMutuallyExclusive("by", "to")
	return cmd
}
