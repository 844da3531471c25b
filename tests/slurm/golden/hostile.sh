#!/bin/bash

# Parameters
#SBATCH --account='account $(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --chdir='/a store'"'"'s $(touch MARK)/pretrain/mae `id`-s0-0123456789/attempts/20250101-120000-abc123'
#SBATCH --comment=20250101-120000-abc123
#SBATCH --constraint='constraint $(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --dependency=afterok:12
#SBATCH --exclude='$(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --exclusive
#SBATCH --export=HOME,LANG,LC_ALL,LD_LIBRARY_PATH,LOGNAME,PATH,SHELL,TZ,USER
#SBATCH --job-name='pretrain/mae $(touch MARK)'"'"'s-0123456789'
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-user='mail_user $(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --mem='memory $(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/a store'"'"'s $(touch MARK)/pretrain/mae `id`-s0-0123456789/attempts/20250101-120000-abc123/%j_0_log.out'
#SBATCH --partition='partition $(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --qos='qos $(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --requeue
#SBATCH --reservation='reservation $(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
#SBATCH --signal=USR2@180
#SBATCH --time=1440
#SBATCH --wckey=''

# setup
GREETING='set up'; export GREETING
export WORD='$(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
export SLURM_CONF='/etc/$(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK'
export PYTHONPATH='/code; touch MARK'"${PYTHONPATH:+:$PYTHONPATH}"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/a store'"'"'s $(touch MARK)/pretrain/mae `id`-s0-0123456789/attempts/20250101-120000-abc123/%j_%t_log.out' --kill-on-bad-exit=1 --export=ALL sh -c 'trap "" TERM USR2; exec "$0" "$@"' '/my venv/$(touch MARK) `touch MARK`; touch MARK # '"'"'"'"'"' "$HOME" \ && touch MARK/python' -u -m submitit.core._submit '/a store'"'"'s $(touch MARK)/pretrain/mae `id`-s0-0123456789/attempts/20250101-120000-abc123'
